"""Pretrain the embedded base model `model=tiny` (1.4 M parameters) on Python's documentation.

    python benchmarks/pretrain_tiny.py --lr 4e-3 --batch-tokens 2048 --steps 3600 --out pml_cli/tiny

Writes model.safetensors (float16), config.json, tokenizer files and card.json into --out. The text
is that of the Python that runs the script, so the same Python version, seed and thread count give
the same model.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import platform
import random
import re
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pml_cli.data.python_docs import held_out_text, is_held_out, python_topics, unwrap

END = "<|endoftext|>"
VOCABULARY = 2048

# Words: a training paragraph that shares a run of so many with the held-out text is dropped.
NGRAM = 13

# Length of a training sequence, and share of the batches.
CONTEXTS = ((512, 0.7), (1024, 0.2), (2048, 0.1))

# Steps of the warm-up, and share of the steps before the decay.
WARM_UP = 100
CONSTANT_SHARE = 0.6

# Folders of the standard library without documentation of it.
SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "pydoc_data",
}

# Characters of the shortest docstring that is used.
MIN_DOCSTRING = 21


def docstrings() -> list[str]:
    """Every distinct docstring of the standard library, tests left out; one document per module."""
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    used: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue

        of_module = []
        for text in module_docstrings(tree):
            if len(text) >= MIN_DOCSTRING and text not in used:
                used.add(text)
                of_module.append(unwrap(text))
        if of_module:
            documents.append("\n\n".join(of_module))
    return documents


def module_docstrings(tree: ast.Module) -> Iterator[str]:
    """The docstrings of a module, its classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def decontaminate(documents: list[str], held_out: str) -> tuple[list[str], int]:
    """Drop the paragraphs that share a run of NGRAM words with the held-out text.

    Returns:
        The remaining documents, and the number of paragraphs dropped.
    """
    secret = ngrams(held_out)
    dropped = 0
    clean = []
    for document in documents:
        paragraphs = document.split("\n\n")
        allowed = [paragraph for paragraph in paragraphs if not ngrams(paragraph) & secret]
        dropped += len(paragraphs) - len(allowed)
        clean.append("\n\n".join(allowed))
    return [document for document in clean if document.strip()], dropped


def ngrams(text: str) -> set[tuple[str, ...]]:
    """All runs of NGRAM words of a text."""
    tokens = re.findall(r"\w+", text.lower())
    return {tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)}


def train_tokenizer(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; digits stand alone, as in Qwen, so that a ten-digit number is ten tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )


def epoch(documents: list[list[int]], end: int, rng: random.Random) -> list[int]:
    """All documents in a new order, each after an end-of-text token."""
    order = documents[:]
    rng.shuffle(order)
    return [token for document in order for token in [end, *document]]


def batches(documents: list[list[int]], end: int, tokens: int, seed: int):
    """Endless batches (B, T) of `tokens` tokens each, with T drawn from CONTEXTS."""
    rng = random.Random(seed)
    lengths, weights = zip(*CONTEXTS, strict=True)
    stream: list[int] = []
    while True:
        length = rng.choices(lengths, weights)[0]
        need = (length + 1) * (tokens // length)
        while len(stream) < need:
            stream += epoch(documents, end, rng)
        yield torch.tensor(stream[:need]).view(-1, length + 1)
        stream = stream[need:]


@torch.no_grad()
def evaluate(model: Qwen3ForCausalLM, ids: list[int], window: int = 512) -> float:
    """Mean negative log-likelihood in nats per token.

    Windows overlap by half, so that each token is scored once, with context.
    """
    model.eval()
    total = 0.0
    count = 0
    for start in range(0, len(ids) - 1, window // 2):
        chunk = torch.tensor(ids[start : start + window + 1])[None]
        skip = 0 if start == 0 else window // 2
        if chunk.shape[1] - 1 <= skip:
            break
        logits = model(chunk[:, :-1]).logits.float()
        nll = F.cross_entropy(logits[0, skip:], chunk[0, 1 + skip :], reduction="sum")
        total += nll.item()
        count += chunk.shape[1] - 1 - skip
    model.train()
    return total / count


@torch.no_grad()
def separate_unseen(model: Qwen3ForCausalLM, documents: list[list[int]], seed: int) -> int:
    """Give tokens that never occurred in training embeddings of their own.

    Training pushes all of them (bytes outside the text's alphabet) to one and the same vector, and
    the head is tied to the embedding: no adapter below it could ever tell one from another, and
    each would stop at a loss of ln(their number). What they share (a low logit) is kept; to it each
    adds noise as large as what separates trained tokens.

    Returns:
        The number of such tokens.
    """
    trained = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    trained[model.config.bos_token_id] = True
    for document in documents:
        trained[document] = True

    untrained = ~trained
    count = int(untrained.sum())
    weight = model.get_input_embeddings().weight
    spread = (weight[trained] - weight[trained].mean(0)).std(0)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, weight.shape[1], generator=generator)
    weight[untrained] = weight[untrained].mean(0) + noise * spread
    return count


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, a constant part, linear decay to 2 % of the peak."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    decay_start = int(steps * CONSTANT_SHARE)
    if step < decay_start:
        return peak
    return peak * max(0.02, 1 - (step - decay_start) / (steps - decay_start))


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is trained on and what is held out, as text and as token ids."""

    train: list[str]
    held_out: str
    tokenizer: PreTrainedTokenizerFast
    documents: list[list[int]]
    held_ids: list[int]


def prepare() -> Texts:
    """The texts, with a tokenizer trained on those that are trained on."""
    topics = python_topics()
    held_out = held_out_text()
    training_topics = [text for name, text in topics.items() if not is_held_out(name)]
    train, dropped = decontaminate(training_topics + docstrings(), held_out)
    tokenizer = train_tokenizer(train, VOCABULARY)
    texts = Texts(
        train=train,
        held_out=held_out,
        tokenizer=tokenizer,
        documents=[tokenizer.encode(document) for document in train],
        held_ids=tokenizer.encode(held_out),
    )

    tokens = sum(map(len, texts.documents))
    print(
        f"{len(train)} documents, {tokens} training tokens, {dropped} paragraphs dropped as seen "
        f"in the held-out text, {len(texts.held_ids)} held-out tokens"
    )
    return texts


def build_model(dropout: float) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        attention_dropout=dropout,
        initializer_range=0.02,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        use_cache=False,
    )
    return Qwen3ForCausalLM(config)


def build_optimizer(
    model: Qwen3ForCausalLM, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, with decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def train(model: Qwen3ForCausalLM, texts: Texts, args: argparse.Namespace) -> None:
    optimizer = build_optimizer(model, args.lr, args.weight_decay)
    end = texts.tokenizer.bos_token_id
    source = batches(texts.documents, end, args.batch_tokens, args.seed)
    start = time.time()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        ids = next(source)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0 or step == args.steps - 1:
            held_out = evaluate(model, texts.held_ids)
            rate = (step + 1) * args.batch_tokens / (time.time() - start)
            losses = f"train {loss.item():.3f}  held-out {held_out:.4f}"
            print(f"step {step + 1:5d}  {losses}  {rate:.0f} tok/s", flush=True)


def save(model: Qwen3ForCausalLM, texts: Texts, args: argparse.Namespace, seconds: float) -> None:
    """Weights in float16, tokenizer and card; the card's loss is that of the stored weights."""
    model.half().float()
    unseen = separate_unseen(model, texts.documents, args.seed)
    model.half().float()
    nll = evaluate(model, texts.held_ids)
    args.out.mkdir(parents=True, exist_ok=True)
    model.config.attention_dropout = 0.0
    model.half().save_pretrained(args.out)
    texts.tokenizer.save_pretrained(args.out)
    bytes_per_token = len(texts.held_out.encode()) / len(texts.held_ids)
    training_text = "\0".join(texts.train)
    size = "6 layers, d 128, 4 heads, 2 kv heads, ffn 384, vocabulary 2048, tied"
    topics = "pydoc_data.topics (about a tenth held out by hash)"
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "architecture": f"Qwen3: {size}",
        "data": f"{topics} and the standard library's docstrings",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "training_text_sha256": hashlib.sha256(training_text.encode()).hexdigest(),
        "held_out_text_sha256": hashlib.sha256(texts.held_out.encode()).hexdigest(),
        "training_tokens": sum(map(len, texts.documents)),
        "tokens_seen": args.steps * args.batch_tokens,
        "held_out_tokens": len(texts.held_ids),
        "held_out_nll_nats_per_token": round(nll, 4),
        "held_out_bits_per_byte": round(nll / math.log(2) / bytes_per_token, 4),
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "threads")},
        "contexts": CONTEXTS,
        "unseen_tokens": unseen,
        "seconds": round(seconds),
    }
    (args.out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.0, help="attention dropout")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    texts = prepare()
    start = time.time()
    model = build_model(args.dropout)
    train(model, texts, args)
    save(model, texts, args, time.time() - start)


if __name__ == "__main__":
    main()
