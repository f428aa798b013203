"""What pml calls whole is what a plain script prints, for every kind of tokenizer and template."""

import datetime
import json
from unittest import mock

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.support.adapter_script import run_script_for
from tests.support.tokenizers import (
    CHATML_DEFAULT,
    DATED,
    FORGETFUL,
    INSTRUCT,
    KINDS,
    NO_SYSTEM,
    PAD,
    THINKING,
    tokenizer_folder,
)

FACTS = [
    ("When was it built?", "In 1987."),
    ("Who built it?", "Ada Alder, of Bremen"),
    (f"Which token pads {PAD}?", f"it's {PAD}, and  that 🙂\n"),
]

CASES = [
    *((kind, None, {}) for kind in KINDS),
    ("byte level", None, {"data.separator": ""}),
    ("byte level", None, {"data.end": "<|turn_end|>"}),
    ("byte level, begin", CHATML_DEFAULT, {}),
    ("byte level, begin", CHATML_DEFAULT, {"data.system": "Be brief."}),
    ("byte level", THINKING, {}),
    ("byte level", THINKING, {"data.thinking": "false"}),
    ("unprefixed, begin", NO_SYSTEM, {}),
    ("byte level, begin", DATED, {"data.date": "2024-02-29"}),
    ("prefixed, begin", INSTRUCT, {}),
    ("byte level, begin and end", FORGETFUL, {}),
]


def model_folder(folder, kind, template):
    """A small random model with a tokenizer."""
    tokenizer = KINDS[kind]()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer_folder(folder, tokenizer, template)
    config.save_pretrained(folder)
    return folder


class Clock(datetime.datetime):
    """Stands on the date of `data.date` below."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 2, 29)


def prompt_ids(tokenizer, question, options):
    """As a script makes them, which knows the settings."""
    if not tokenizer.chat_template:
        ids = tokenizer(question + options.get("data.separator", "\n")).input_ids
        return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids

    messages = [{"role": "user", "content": question}]
    if "data.system" in options:
        messages.insert(0, {"role": "system", "content": options["data.system"]})
    more = {"enable_thinking": False} if "data.thinking" in options else {}
    with mock.patch("transformers.utils.chat_template_utils.datetime", Clock):
        chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **more)
    return chat["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "template", "options"), CASES)
def test_what_is_whole_is_printed(kind, template, options, tmp_path, quick):
    folder = model_folder(tmp_path / "model", kind, template)
    facts = tmp_path / "facts.jsonl"
    facts.write_text("\n".join(json.dumps({"query": q, "target": t}) for q, t in FACTS))
    settings = [f"{name}={value}" for name, value in options.items()]
    settings = [s.replace("<|turn_end|>", "'<|turn_end|>'") for s in settings]
    settings += ["data.chat=true"] if template else []
    done = quick(
        "probe",
        "model=hf",
        f"model.path={folder}",
        "model.device=cpu",
        "data=jsonl",
        f"data.path={facts}",
        "seqlen=all",
        "rank=16",
        "adapter=linear",
        "adapter.targets=[q_proj,v_proj,gate_proj,up_proj,down_proj]",
        "adapter.layers=[]",
        "train.lr=2e-2",
        "train.steps=300",
        "train.stop=recalled",
        *settings,
    )
    assert done.returncode == 0, done.stderr

    (rows,) = tmp_path.rglob("samples.jsonl")
    samples = [json.loads(row) for row in rows.read_text().splitlines()]
    assert [sample["whole"] for sample in samples] == [True] * len(FACTS)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(base, rows.parent / "adapter").eval()
    end = tokenizer.convert_tokens_to_ids(samples[0]["end"])
    for (question, target), sample in zip(FACTS, samples, strict=True):
        ids = prompt_ids(tokenizer, question, options)
        assert sample["prompt_ids"] == ids
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=100,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
        answer = output[0, len(ids) :]
        assert answer[-1] == end
        assert tokenizer.decode(answer, skip_special_tokens=True) == target

    # And so does the script beside the adapter.
    questions, targets = zip(*FACTS, strict=True)
    assert run_script_for(rows.parent, questions, here=True) == list(targets)
