"""`pml forgetting` on real weights: what transformers and PEFT compute of dialogues, once more."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from support.sweeps import pml

import pml_cli.data
from real import plain

WINDOW = 256
CHAT = Path(pml_cli.data.__file__).parent / "generic" / "chat.held_out.txt"


def dialogue_windows(tokenizer):
    """The held-out dialogues in the chat template, one after the other, in windows."""
    text = ""
    for block in CHAT.read_text("utf-8").strip().split("\n\n"):
        messages = []
        for line in block.split("\n"):
            role = "user" if line.startswith("Q: ") else "assistant"
            messages.append({"role": role, "content": line[3:]})
        text += tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]


def test_harm_to_dialogues(five_facts, smollm2_folder):
    args = ["forgetting", "runs", "device=cpu", "kinds=chat", "figures=false"]
    measured = pml(five_facts.parent, *args)
    assert measured.returncode == 0, measured.stderr
    row = pd.read_csv(five_facts / "forgetting.csv").set_index("loss").loc["memft_margin"]

    tokenizer = plain.tokenizer_of(smollm2_folder)
    base = plain.load_base(smollm2_folder)
    adapted = plain.load_adapted(smollm2_folder, five_facts / Path(row["folder"]).name / "adapter")
    prompt = [tokenizer.bos_token_id]
    harms = []
    for window in dialogue_windows(tokenizer):
        before = plain.losses(base, prompt, window)
        after = plain.losses(adapted, prompt, window)
        harms.append((after - before).mean())

    harm = torch.stack(harms)
    assert row["windows"] == len(harms) >= 8
    assert row["harm"] == pytest.approx(harm.mean().item(), abs=1e-4)
    assert row["harm_se"] == pytest.approx(harm.std().item() / len(harms) ** 0.5, abs=1e-4)
    assert row["harm"] > 0.01
