"""`pml lasting` on real weights: what torch, transformers and PEFT compute of the same tokens."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.sweeps import pml

from real import plain

README = Path(__file__).parents[2] / "README.md"

# Scored tokens of a window of `pml lasting`.
WINDOW = 256


@pytest.fixture(scope="module")
def lasting(five_facts):
    """The rows of lasting.csv, by loss and condition."""
    measured = pml(
        five_facts.parent, "lasting", "runs", "device=cpu", f"text={README}", f"tokens={2 * WINDOW}"
    )
    assert measured.returncode == 0, measured.stderr
    return pd.read_csv(five_facts / "lasting.csv").set_index(["loss", "condition"])


@pytest.fixture(scope="module")
def facts(five_facts, smollm2_folder):
    """Ids of each fact's chat prompt, and of its answer with the end of the turn."""
    tokenizer = plain.tokenizer_of(smollm2_folder)
    pairs = []
    for line in (five_facts.parent / "facts.jsonl").read_text("utf-8").splitlines():
        fact = json.loads(line)
        prompt = plain.chat_ids(tokenizer, fact["question"])
        answer = tokenizer(fact["answer"] + "<|im_end|>", add_special_tokens=False).input_ids
        pairs.append((prompt, answer))
    return pairs


@pytest.fixture(scope="module")
def windows(smollm2_folder):
    """The first and the last whole window of the text, each after begin-of-text."""
    tokenizer = plain.tokenizer_of(smollm2_folder)
    ids = tokenizer(README.read_text("utf-8"), add_special_tokens=False).input_ids
    last = len(ids) // WINDOW - 1
    begin = [tokenizer.bos_token_id]
    return [(begin, ids[i * WINDOW : (i + 1) * WINDOW]) for i in (0, last)]


def adapter_of(runs, row):
    return runs / Path(row["folder"]).name / "adapter"


def mean_loss(model, pairs):
    losses = [plain.losses(model, prompt, target) for prompt, target in pairs]
    return torch.cat(losses).mean().item()


@pytest.mark.parametrize("loss", ["sft", "memft_margin"])
def test_the_loss_of_what_was_learned(lasting, five_facts, smollm2_folder, facts, loss):
    """As trained and merged in float32; in bfloat16, where sums round otherwise, nearly."""
    rows = lasting.loc[loss]
    adapter = adapter_of(five_facts, rows.loc["trained"])

    adapted = plain.load_adapted(smollm2_folder, adapter)
    assert rows.loc["trained", "final_loss"] == pytest.approx(mean_loss(adapted, facts), abs=1e-4)

    merged = plain.load_merged(smollm2_folder, adapter)
    assert rows.loc["merged", "final_loss"] == pytest.approx(mean_loss(merged, facts), abs=1e-4)

    rounded = plain.load_merged(smollm2_folder, adapter, torch.bfloat16)
    bf16 = rows.loc["bf16_merged", "final_loss"]
    assert bf16 == pytest.approx(mean_loss(rounded, facts), rel=0.1, abs=1e-3)


def test_recall_in_bfloat16(lasting, five_facts, smollm2_folder, facts):
    rows = lasting.loc["memft_margin"]
    adapter = adapter_of(five_facts, rows.loc["trained"])
    model = plain.load_adapted(smollm2_folder, adapter, torch.bfloat16)
    whole = 0
    for prompt, answer in facts:
        whole += plain.generate(model, prompt) == answer
    assert rows.loc["bf16", "free_exact_match"] == whole / len(facts)


def test_forgetting(lasting, five_facts, smollm2_folder, windows):
    """Loss under base and adapter, KL(base || adapted) and changed choices of the same windows."""
    row = lasting.loc[("sft", "trained")]
    assert row["text_tokens"] == 2 * WINDOW
    base = plain.load_base(smollm2_folder)
    adapted = plain.load_adapted(smollm2_folder, adapter_of(five_facts, row))

    divergence = []
    changed = []
    for prompt, target in windows:
        before = plain.logits(base, prompt, target)
        after = plain.logits(adapted, prompt, target)
        terms = torch.nn.functional.kl_div(
            after.log_softmax(1), before.log_softmax(1), log_target=True, reduction="none"
        )
        divergence.append(terms.sum(1))
        changed.append(before.argmax(1) != after.argmax(1))

    assert row["text_base_loss"] == pytest.approx(mean_loss(base, windows), abs=1e-4)
    assert row["text_loss"] == pytest.approx(mean_loss(adapted, windows), abs=1e-4)
    assert row["text_kl"] == pytest.approx(torch.cat(divergence).mean().item(), abs=1e-4)
    share = torch.cat(changed).float().mean().item()
    assert row["text_changed"] == pytest.approx(share, abs=0.005)
