"""Whether the first position of a model is an attention sink, measured once for each model.

Many pretrained models give their first token, whatever it is, a residual stream a hundred times as
long as that of any other, for later tokens to attend to (Sun et al. 2024, "Massive Activations").
What an adapter adds there vanishes when the final norm scales the residual down, so a target's
first token cannot be learned where begin-of-text alone comes before it. A prompt of a few tokens
keeps the target off that position.

Measured is the residual stream after each layer, at the position that an empty prompt ends with
against the median of eight ordinary tokens behind it. From the adapter's layer up, because a sink
that arises above the adapter buries what was added below it. Norms of 100 fold and of one digit lie
wide apart, so device and dtype hardly matter: it is measured on the CPU, with layers streamed.

torch is imported only to measure; the answers are kept in the cache folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from pml_cli.config.cache_key import CacheKey, file_cache
from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.io import cache_folder, write_json
from pml_cli.model.dims import model_dims
from pml_cli.model.faults import one_line
from pml_cli.model.file_hash import sampled_hash
from pml_cli.model.files import locate
from pml_cli.model.gguf import gguf_file
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.model.weight_files import local_weights
from pml_cli.validation import Number, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from pml_cli.model.split_model import SplitModel

# A position is an attention sink if its norm is at least this multiple of the others' median.
# The embedded model, which has none, stays below 1.7; SmolLM2 has 8 after its last layer, where it
# is smallest, and 17 to 170 from its twelfth on. An unnecessary prompt is harmless, so the limit is
# nearer to 1.7.
SINK_RATIO = 4.0

# Sequences that are measured, and tokens in each behind the prompt: a median over all of them.
SEQUENCES = 4
TOKENS = 8

# Changes where the measurement does, so that older answers in the cache do not count.
VERSION = 1


def first_position_is_sink(model: Model) -> bool:
    """Whether the target's first token cannot be learned without a prompt.

    Where the weights are not on this machine (a hub model that was not downloaded yet), it is
    assumed, as it holds for nearly every pretrained model: `is_measurable` tells.

    Args:
        model: its layer is where the adapter is; whatever lies above counts.
    """
    # The embedded model has none, which a test measures; random weights never do.
    if model.path == "tiny" or model.weights == "random":
        return False

    ratios = _ratios(CacheKey(model))
    if ratios is None:
        return True
    layer = model_dims(model).adapter_layer(model.layer)
    # Where a residual overflows there is no ratio, and certainly a sink.
    return any(ratio is None or ratio >= SINK_RATIO for ratio in ratios[layer:])


def is_measurable(model: Model) -> bool:
    """Whether `first_position_is_sink` is known of a model, and not assumed."""
    if model.path == "tiny" or model.weights == "random":
        return True
    return _ratios(CacheKey(model)) is not None


def _ratios(key: CacheKey) -> Sequence[float | None] | None:
    """Norm at the last prompt token as a multiple of the others' median, for each layer.

    Returns:
        None where the weights are not here, or cannot be run.
    """
    model: Model = key.value
    files = local_weights(model)
    # Asked again the next time: they may have been downloaded by then.
    if not files:
        return None

    # Where the model is run and which of its layers has the adapter changes no ratio.
    measured = dataclasses.replace(model, name="sink", layer=None, device="cpu")
    return _cached_ratios(CacheKey(measured), tuple(files))


@file_cache(64)
def _cached_ratios(key: CacheKey, files: tuple[Path, ...]) -> Sequence[float | None] | None:
    model: Model = key.value
    layers = model_dims(model).layers
    try:
        prompt_ids = open_tokenizer(model).prompt("")
    # Without begin-of-text there is no first position: nothing can be predicted without a prompt.
    except UserError:
        return [None] * layers

    path = cache_folder() / "sinks" / f"{_content_key(model, files, prompt_ids)}.json"
    ratios = _read(path, layers)
    if ratios is not None:
        return ratios
    try:
        with one_line(f"model={model.name}"):
            ratios = _measured(model, prompt_ids)
    # Whatever keeps the model from being run is reported when it is loaded to be trained.
    except Exception:
        return None
    # A cache that cannot be written is no fault.
    with suppress(OSError):
        write_json(path, {"ratios": ratios})
    return ratios


class KeptFields(TypedDict):
    """A file of the cache folder."""

    ratios: list[Number | None]


def _content_key(model: Model, files: Sequence[Path], prompt_ids: Sequence[int]) -> str:
    """A hash of what decides the ratios; a copy of a model in another folder has the same."""
    config = locate(model, "config.json")
    config_text = "" if config is None else config.read_text("utf-8")
    hashes = sorted(sampled_hash(file) for file in files)
    content = [VERSION, config_text, hashes, list(prompt_ids), model.dtype]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _read(path: Path, layers: int) -> list[float | None] | None:
    """The ratios of a cache file; None where it is missing or damaged."""
    try:
        ratios: list[float | None] = read_json(path, KeptFields, "")["ratios"]
    except UserError:
        return None
    return ratios if len(ratios) == layers else None


def _measured(model: Model, prompt_ids: Sequence[int]) -> list[float | None]:
    """The ratios of a model, of each layer; None where the residual overflows."""
    import torch

    from pml_cli.model.layer_calls import captured

    base = _loaded(model)
    states: list[dict[str, Tensor]] = [{} for _ in base.layers]
    with ExitStack() as stack, torch.no_grad():
        for layer, tensors in zip(base.layers, states, strict=True):
            stack.enter_context(captured(layer, tensors, output_key="residual"))
        base.full(torch.from_numpy(_sequences(model, prompt_ids)))

    position = len(prompt_ids) - 1
    ratios = []
    for tensors in states:
        norms = tensors["residual"].double().norm(dim=-1)
        usual_norm = norms[:, position + 1 :].median()
        ratio = float(norms[:, position].median() / usual_norm)
        ratios.append(ratio if math.isfinite(ratio) else None)
    return ratios


def _loaded(model: Model) -> SplitModel:
    """The model with its layers streamed, which takes little memory; whole where it cannot be."""
    from pml_cli.model.loading import load_model

    if gguf_file(model.path) is None:
        with suppress(UserError):
            return load_model(dataclasses.replace(model, stream=True))
    return load_model(dataclasses.replace(model, stream=None))


def _sequences(model: Model, prompt_ids: Sequence[int]) -> NDArray[np.int64]:
    """Ids of an empty prompt with ordinary tokens behind it, (SEQUENCES, prompt + TOKENS)."""
    tokenizer = open_tokenizer(model)
    ordinary = sorted(set(range(tokenizer.size)) - tokenizer.special)
    drawn = np.random.default_rng(0).choice(ordinary, size=(SEQUENCES, TOKENS))
    prompts = np.tile(np.array(prompt_ids), (SEQUENCES, 1))
    return np.concatenate([prompts, drawn], axis=1)
