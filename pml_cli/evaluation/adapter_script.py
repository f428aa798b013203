"""A script that makes a saved adapter answer, in transformers and PEFT alone."""

from __future__ import annotations

from pml_cli.config.schema import LinearAdapter, Model, Run
from pml_cli.evaluation.dialogue import Dialogue, IdsPrompt
from pml_cli.model.adapter_bank import WEIGHTS_FILE
from pml_cli.model.gguf import base_path, gguf_file
from pml_cli.model.read_back import Loading

HALF_DTYPES = ("bfloat16", "float16")


def adapter_script(run: Run, dialogue: Dialogue, loading: Loading) -> str:
    """The script, to be run in the adapter's folder.

    Its first line sets QUESTION, and it prints `answer(QUESTION)`; where the prompt is given as
    ids, `answer()`.

    Args:
        run: resolved, with pretrained weights.
        dialogue: how it asks and prints.
        loading: how the adapter is put on the model.
    """
    asks = not isinstance(dialogue.prompt, IdsPrompt)
    lines = [f"QUESTION = {dialogue.question!r}", ""] if asks else []
    lines += [*_imports(dialogue, loading), ""]
    lines += [*_base_lines(run.model, dialogue), *_adapter_lines(run, loading)]
    lines += [_generation_line(dialogue), "", ""]

    lines.append(f"def answer({'question' if asks else ''}):")
    body = [*dialogue.prompt.code(), *_answer_lines(dialogue)]
    lines += [f"    {line}" for line in body]
    lines += ["", "", f"print(answer({'QUESTION' if asks else ''}))"]
    return "\n".join(lines) + "\n"


def _imports(dialogue: Dialogue, loading: Loading) -> list[str]:
    lines = ["import torch"] if isinstance(dialogue.prompt, IdsPrompt) else []
    if loading.by_peft:
        lines.append("from peft import PeftModel")
    else:
        lines.append("from safetensors.torch import load_file")

    names = ["AutoModelForCausalLM", "GenerationConfig"]
    if dialogue.reads_text:
        names.insert(1, "AutoTokenizer")
    return [*lines, f"from transformers import {', '.join(names)}"]


def _base_lines(model: Model, dialogue: Dialogue) -> list[str]:
    """Tokenizer and base model."""
    options = {}
    file = gguf_file(model.path)
    if file is not None:
        options["gguf_file"] = file.name
    if model.revision:
        options["revision"] = model.revision
    code = "".join(f", {name}={value!r}" for name, value in options.items())
    if model.trust_remote_code:
        code += ", trust_remote_code=True"

    lines = [f"base = {base_path(model)!r}"]
    if dialogue.reads_text:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained(base{code})")
        if dialogue.has_token_types:
            lines.append('tokenizer.model_input_names = ["input_ids", "attention_mask"]')
    arguments = f"base{code}, dtype={model.dtype!r}"
    lines.append(f"model = AutoModelForCausalLM.from_pretrained({arguments})")
    return lines


def _adapter_lines(run: Run, loading: Loading) -> list[str]:
    """The adapter, put on the model by PEFT or by forward hooks."""
    if loading.by_peft:
        return ['model = PeftModel.from_pretrained(model, ".")']

    scale = ""
    if isinstance(run.adapter, LinearAdapter):
        scale = f" * {run.adapter.alpha / run.rank!r}"
    output = "y[0]" if loading.returns_tuple else "y"
    delta = f"x[0] @ A.T @ B.T{scale}"
    if run.model.dtype in HALF_DTYPES:
        delta = f"(x[0].float() @ A.T @ B.T{scale}).to({output}.dtype)"
    added = f"{output} + {delta}"
    if loading.returns_tuple:
        added = f"({added}, *y[1:])"

    return [
        f'weights = load_file("{WEIGHTS_FILE}")',
        f"for name in {list(loading.sites)!r}:",
        '    A = weights[f"base_model.model.{name}.lora_A.weight"]',
        '    B = weights[f"base_model.model.{name}.lora_B.weight"]',
        "    module = model.get_submodule(name)",
        f"    module.register_forward_hook(lambda module, x, y, A=A, B=B: {added})",
    ]


def _generation_line(dialogue: Dialogue) -> str:
    """Greedy decoding: the base model's own settings may sample, or penalise repetition."""
    settings = f"max_new_tokens={dialogue.max_new_tokens}"
    if len(dialogue.end) == 1:
        settings += f", eos_token_id={dialogue.end[0]}"
    return f"model.generation_config = GenerationConfig({settings})"


def _answer_lines(dialogue: Dialogue) -> list[str]:
    stop = ""
    if len(dialogue.end) > 1:
        stop = f", stop_strings=[{dialogue.end_text!r}], tokenizer=tokenizer"
    lines = [
        f"output = model.generate(**prompt{stop})",
        'ids = output[0, prompt["input_ids"].shape[1] :]',
    ]

    if not dialogue.reads_text:
        text = "ids.tolist()"
    elif dialogue.skips_special:
        text = "tokenizer.decode(ids, skip_special_tokens=True)"
    elif dialogue.end_text:
        text = f"tokenizer.decode(ids).removesuffix({dialogue.end_text!r})"
    else:
        text = "tokenizer.decode(ids)"
    return [*lines, f"return {text}"]
