"""README.md of an adapter's folder: what it remembers, a script that asks it, how it was made.

Its head is that of a model card on the Hugging Face hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from pml_cli import __version__
from pml_cli.config.schema import Model, Run
from pml_cli.evaluation.adapter_script import adapter_script
from pml_cli.evaluation.dialogue import ChatPrompt, Dialogue, IdsPrompt, dialogue_of
from pml_cli.format import counted
from pml_cli.model.generation import beyond_greedy
from pml_cli.model.gguf import base_path
from pml_cli.model.read_back import Loading
from pml_cli.results.run_id import loss_label

README_FILE = "README.md"


def adapter_readme(run: Run, result: Mapping[str, Any], loading: Loading) -> str:
    """The text of the file.

    Args:
        run: resolved.
        result: the body of its result.json.
        loading: how the adapter is put on the model.
    """
    sections = [_head(run, loading), _title(run), _recall(run, result)]

    # Weights that were drawn at random are in no file.
    if run.model.weights == "pretrained":
        dialogue = dialogue_of(run)
        sections += [_usage(run, dialogue, loading), *_notes(run, dialogue, loading)]

    sections += [_origin(run, result), _files()]
    return "\n\n".join(sections) + "\n"


def _head(run: Run, loading: Loading) -> str:
    """The YAML of a model card."""
    fields: dict[str, Any] = {}
    path = base_path(run.model)

    # The hub refuses a card whose base model is none of its own.
    if not Path(path).is_absolute():
        fields["base_model"] = path
    if loading.by_peft:
        fields["library_name"] = "peft"

    fields["pipeline_tag"] = "text-generation"
    fields["tags"] = ["lora", "memorization", "pml"]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False).strip()}\n---"


def _title(run: Run) -> str:
    return f"# {_inline(run.data.label)} in a LoRA adapter of rank {run.rank} on {run.model.name}"


def _recall(run: Run, result: Mapping[str, Any]) -> str:
    """What the adapter remembers, in a sentence or two."""
    samples = result["samples"]
    recalled = round(result["exact_match"] * samples)
    tokens = result["target_tokens"]
    accuracy = 100 * result["token_accuracy"]

    ends = getattr(run.data, "end", "none") not in ("none", "auto")
    end = ", the end token included" if ends else ""

    return (
        f"It was trained to write {counted(samples, 'text')} ({counted(tokens, 'token')}) "
        f"word for word, and does so with {recalled} of {samples}{end}; {accuracy:.1f} % of the "
        "tokens are right."
    )


def _usage(run: Run, dialogue: Dialogue, loading: Loading) -> str:
    script = adapter_script(run, dialogue, loading)
    fence = _fence(script)
    packages = "transformers and PEFT" if loading.by_peft else "transformers alone"
    more = "" if isinstance(dialogue.prompt, IdsPrompt) else "; `answer` takes any question"
    return (
        f"## Ask it\n\nWith {packages}, run in this folder{more}:\n\n{fence}python\n{script}{fence}"
    )


def _fence(text: str) -> str:
    """A fence that no run of backticks in a text closes."""
    runs = re.findall(r"`+", text)
    longest = max(map(len, runs), default=0)
    return "`" * max(3, longest + 1)


def _notes(run: Run, dialogue: Dialogue, loading: Loading) -> list[str]:
    """What the script does, and why it loads the adapter as it does."""
    notes = [_question_note(dialogue), _end_note(dialogue), _decoding_note(run.model)]
    if not Path(base_path(run.model)).is_absolute():
        notes.append("`base` is the model on the Hugging Face hub.")
    else:
        notes.append("`base` is where the base model lay; change it where that is elsewhere.")

    if loading.by_block:
        notes.append(
            "The adapter stands beside a whole MLP block, for which PEFT has no layer: "
            "`PeftModel.from_pretrained` refuses it, and the script adds it with a forward hook. "
            'With pml, `pml_cli.peft_block.load_mlp_block(model, ".")` makes it a PEFT model.'
        )
    elif not loading.by_peft:
        notes.append(
            f"PEFT {metadata.version('peft')} does not load adapters on these modules of this "
            "family as they were trained (tried when this was written), so that the script adds "
            "them with forward hooks; `PeftModel.from_pretrained` refuses this folder."
        )
    return ["\n".join(f"- {note}" for note in notes)]


def _question_note(dialogue: Dialogue) -> str:
    if isinstance(dialogue.prompt, IdsPrompt):
        return "The prompt is that of the first sample, as ids: no text gives these very ids."
    prompt_kind = "the text of the training around QUESTION"
    if isinstance(dialogue.prompt, ChatPrompt):
        prompt_kind = "the chat template's"
    return (
        f"The prompt is {prompt_kind}, which gives the very tokens of the training; another "
        "prompt, or another system turn, may be answered otherwise."
    )


def _end_note(dialogue: Dialogue) -> str:
    if not dialogue.end:
        return (
            "No end was trained: `max_new_tokens` is the length of the first sample, and the model "
            "would write on."
        )

    end_text = _inline(dialogue.end_text)
    note = f"The answer ends with {end_text}, which was trained as its last token."
    if dialogue.cut_tokens:
        note += (
            f" The last sample was cut, and has no end: `max_new_tokens={dialogue.cut_tokens}` "
            "prints as much of it as was trained."
        )
    return note


def _decoding_note(model: Model) -> str:
    """What a script of one's own must not take over from the base model."""
    note = (
        "The answers are those of greedy decoding and nothing else, which is why the script "
        "replaces `model.generation_config`"
    )
    settings = beyond_greedy(model)
    if not settings:
        return f"{note}."
    listed = ", ".join(_inline(f"{name}={value}") for name, value in settings.items())
    return (
        f"{note}. That of the base model has {listed}, which `generate(do_sample=False)` follows, "
        "and then may answer otherwise."
    )


def _origin(run: Run, result: Mapping[str, Any]) -> str:
    """How the adapter was made."""
    placement = f"beside the MLP block of layer {result['layer']}"
    if run.adapter.kind != "mlp_block":
        placement = f"on linear modules, from layer {result['layer']} on"

    revision = f", revision {run.model.revision}" if run.model.revision else ""
    lines = [
        f"- base model: {_inline(base_path(run.model))}{revision}, in {run.model.dtype}",
        f"- adapter: rank {run.rank}, {placement}; {result['trainable_parameters']:,} parameters",
        f"- training: {loss_label(run.loss)}, {counted(result['steps_run'], 'step')} at learning "
        f"rate {run.train.peak_lr:g}, seed {run.seed}",
        f"- loss: {result['base_loss']:.3f} nats per token before, {result['final_loss']:.3f} "
        "after",
        f"- {_versions()}",
    ]

    return "## How it was made\n\n" + "\n".join(lines)


@lru_cache(maxsize=1)
def _versions() -> str:
    names = ("transformers", "torch", "peft")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"pml {__version__}, {versions}"


def _files() -> str:
    return (
        "The folder above is the run's: `config.yaml` holds every setting, `result.json` every "
        "number, `samples.jsonl` the prompt, the target and the answer of every sample."
    )


def _inline(text: str) -> str:
    """Text of a user or a model as code in a sentence, on one line."""
    escaped = repr(text)[1:-1] if text else "(empty)"
    fence = "`" * (len(_fence(escaped)) - 2 if "`" in escaped else 1)
    space = " " if "`" in escaped else ""
    return f"{fence}{space}{escaped}{space}{fence}"
