"""What a user's own script computes, with torch, transformers and PEFT alone: no line of pml runs.

It judges what pml says of a run: what the adapter answers, and what texts cost in nats.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_base(base, dtype=torch.float32):
    """The frozen model of a folder."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()


def load_adapted(base, adapter, dtype=torch.float32):
    """The model with a run's adapter on it, both in one dtype.

    Args:
        base: folder of the frozen model.
        adapter: the adapter/ folder of a run.
        dtype: of all weights.
    """
    model = load_base(base, dtype)
    config = json.loads((Path(adapter) / "adapter_config.json").read_text("utf-8"))
    if all(name.endswith(".mlp") for name in config["target_modules"]):
        _attach_blocks(model, adapter, config)
        return model

    from peft import PeftModel

    # Else PEFT keeps the adapter in float32.
    return PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).to(dtype).eval()


def load_merged(base, adapter, dtype=torch.float32):
    """The model with a linear adapter added to its weights, which PEFT does in `dtype`."""
    return load_adapted(base, adapter, dtype).merge_and_unload()


def _attach_blocks(model, adapter, config):
    """Add x @ A.T @ B.T to the output of each MLP: PEFT has no layer for whole blocks."""
    weights = load_file(Path(adapter) / "adapter_model.safetensors")
    assert config["lora_alpha"] == config["r"]
    for name in config["target_modules"]:
        A = weights[f"base_model.model.{name}.lora_A.weight"].to(model.dtype)
        B = weights[f"base_model.model.{name}.lora_B.weight"].to(model.dtype)

        def add(_module, inputs, output, A=A, B=B):
            return output + inputs[0] @ A.T @ B.T

        model.get_submodule(name).register_forward_hook(add)


def chat_ids(tokenizer, question, system=None):
    """Ids of a question in the tokenizer's chat template.

    Args:
        tokenizer: of transformers.
        question: the user's turn.
        system: the system turn; None: whatever the template makes of a missing one.
    """
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(rendered, add_special_tokens=False).input_ids


@torch.no_grad()
def generate(model, prompt, end=None, max_new_tokens=64):
    """Greedy ids after a prompt, the end token included.

    Args:
        model: of transformers or PEFT.
        prompt: token ids.
        end: id at which to stop; None: the model's own.
        max_new_tokens: at most.
    """
    stop = {} if end is None else {"eos_token_id": end}
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=0,
        **stop,
    )
    return output[0, len(prompt) :].tolist()


def answer(model, tokenizer, question, chat, separator="\n"):
    """The text that a model generates after a question.

    Args:
        model: of transformers or PEFT.
        tokenizer: its tokenizer.
        question: what is asked.
        chat: in the chat template; else followed by the separator.
        separator: between question and answer.
    """
    prompt = chat_ids(tokenizer, question) if chat else tokenizer(question + separator).input_ids
    ids = generate(model, prompt, end=tokenizer.eos_token_id)
    return tokenizer.decode(ids, skip_special_tokens=True)


@torch.no_grad()
def logits(model, prompt, target):
    """Logits of each target token, (target, vocabulary), in float32."""
    ids = torch.tensor([[*prompt, *target]])
    first = len(prompt) - 1
    return model(input_ids=ids, use_cache=False).logits[0, first:-1].float()


def losses(model, prompt, target):
    """Nats of each target token, (target,)."""
    return cross_entropy(logits(model, prompt, target), torch.tensor(target), reduction="none")


def tokenizer_of(base):
    """The tokenizer of a folder."""
    return AutoTokenizer.from_pretrained(base)
