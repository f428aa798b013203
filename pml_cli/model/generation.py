"""What a model's own generation_config.json adds to greedy decoding."""

from __future__ import annotations

from typing import Any

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.files import downloaded, hub_id, local_folder
from pml_cli.validation import load_json

GENERATION_CONFIG = "generation_config.json"

# Settings that change which token has the largest logit, or that search beyond it, with the values
# that leave greedy decoding as it is (transformers' `GenerationConfig`).
PLAIN: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1, 1.0),
    "encoder_repetition_penalty": (1, 1.0),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0, 0.0),
    "guidance_scale": (1, 1.0),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({},),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
}


def beyond_greedy(model: Model) -> dict[str, Any]:
    """Settings of a model's generation_config.json that `generate(do_sample=False)` follows.

    Returns:
        By their names; empty without such a file, or where it cannot be read.
    """
    folder = local_folder(model)
    path = None if folder is None else folder / GENERATION_CONFIG
    repository = hub_id(model)
    if repository is not None:
        # transformers has downloaded it with the weights.
        path = downloaded(repository, GENERATION_CONFIG, model.revision)
    if path is None or not path.exists():
        return {}
    try:
        content = load_json(path, "")
    except UserError:
        # transformers, too, goes on without one.
        return {}
    if not isinstance(content, dict):
        return {}

    settings = {}
    for name, plain in PLAIN.items():
        value = content.get(name)
        if value is not None and value not in plain:
            settings[name] = value
    return settings
