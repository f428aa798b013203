"""Finds the parts of a transformers model: decoder layers, norms, MLP blocks, linear modules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pml_cli.config.schema import Model
from pml_cli.errors import UserError, did_you_mean
from pml_cli.model.adapter_bank import Site
from pml_cli.model.families import ModelFamily
from pml_cli.model.head import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names that families give to the MLP of a decoder layer.
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "mlp_block")

# Numbers of a layer by which some families multiply what its MLP adds: Granite, MiniCPM 3, Gemma 4.
MLP_FACTORS = ("residual_multiplier", "residual_scale", "layer_scalar")

# Names that families give to the cap of their logits.
LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

# The linear module of GPT-2 and its kin.
CONV1D = "Conv1D"


def find_decoder(model: PreTrainedModel, settings: Model) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder of a transformers model (the model without its head) and its layers.

    Raises:
        UserError: it has no list of as many modules as its config has layers.
    """
    count = model.config.get_text_config().num_hidden_layers
    # Some families have no `get_decoder` of their own; of others it is the head.
    candidates = [model.get_decoder(), model.base_model]
    for decoder in candidates:
        if decoder is model:
            continue
        for module in decoder.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return decoder, module

    reason = f"no list of {count} decoder layers found; this family is not supported"
    raise UserError(f"model={settings.name}: {reason}")


def find_head(model: PreTrainedModel, settings: Model) -> Head:
    """The output layer of a transformers model.

    Raises:
        UserError: it has none, or not one of a single weight.
    """
    output: Any = model.get_output_embeddings()
    weight = getattr(output, "weight", None)
    if not isinstance(weight, Tensor):
        reason = "no output layer found (lm_head); this family is not supported"
        raise UserError(f"model={settings.name}: {reason}")

    config: Any = model.config.get_text_config()
    return Head(
        weight_VD=weight,
        bias_V=getattr(output, "bias", None),
        cap=_logit_cap(config),
        factor=_logit_factor(config),
    )


def _logit_factor(config: Any) -> float | None:
    """What a family multiplies its logits by; None: nothing."""
    # Of Cohere, and of Falcon-H1.
    for name in ("logit_scale", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))

    # Of Granite and MiniCPM 3.
    divisor = getattr(config, "logits_scaling", None)
    return None if divisor is None else 1 / float(divisor)


def _logit_cap(config: Any) -> float | None:
    for name in LOGIT_CAPS:
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    return None


def find_final_norm(decoder: nn.Module, family: ModelFamily, settings: Model) -> nn.Module:
    """The norm after the last layer.

    Raises:
        UserError: the decoder has none of the names of the family.
    """
    norm = _first_module(decoder, family.final_norms)
    if norm is not None:
        return norm

    names = ", ".join(family.final_norms)
    reason = f"no final norm found ({names}); this family is not supported"
    raise UserError(f"model={settings.name}: {reason}")


def find_post_mlp_norm(layer: nn.Module, family: ModelFamily) -> nn.Module | None:
    """The norm that the output of a layer's MLP passes before it is added; None: there is none."""
    return _first_module(layer, family.post_mlp_norms)


def find_mlp(layer: nn.Module, settings: Model) -> nn.Module:
    """The MLP block of a decoder layer.

    Raises:
        UserError: the layer has no module of such a name.
    """
    mlp = _first_module(layer, MLP_NAMES)
    if mlp is None:
        reason = f"the layers of model={settings.name} have no MLP module; use adapter=linear"
        raise UserError(f"adapter=mlp_block: {reason}")
    return mlp


def mlp_factor(layer: nn.Module) -> float | None:
    """What a layer multiplies the output of its MLP by before it is added; None: nothing."""
    factors = [float(getattr(layer, name)) for name in MLP_FACTORS if hasattr(layer, name)]
    return math.prod(factors) if factors else None


def _first_module(parent: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    for name in names:
        module = getattr(parent, name, None)
        if isinstance(module, nn.Module):
            return module
    return None


def linear_sites(layer: nn.Module, layer_name: str, targets: list[str]) -> list[Site]:
    """The modules of a decoder layer that linear adapters are attached to.

    Args:
        layer: the decoder layer.
        layer_name: its full name in the model.
        targets: the end of a module's name, such as q_proj or mlp.c_proj; one may fit several
            modules.

    Raises:
        UserError: a target fits no module.
    """
    weights = _weight_matrices(layer)
    sites = []
    for target in targets:
        names = [name for name in weights if f".{name}".endswith(f".{target}")]
        if not names:
            last_parts = {name.split(".")[-1] for name in weights}
            raise UserError(f"adapter.targets={target}: {did_you_mean(target, last_parts)}")
        for name in names:
            sites.append(_site(f"{layer_name}.{name}", weights[name]))
    return sites


def _weight_matrices(layer: nn.Module) -> dict[str, nn.Module]:
    """The linear modules of a layer, by name.

    Routers of experts hold a matrix too, but return more than a product with it.
    """
    matrices = {}
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == CONV1D
        if is_linear and isinstance(weight, Tensor) and weight.dim() == 2:
            matrices[name] = module
    return matrices


def _site(name: str, module: nn.Module) -> Site:
    weight: Any = module.weight
    rows, columns = (int(size) for size in weight.shape)
    # GPT-2's Conv1D stores (in, out), Linear (out, in).
    if isinstance(module, nn.Linear):
        return Site(name=name, inputs=columns, outputs=rows)
    return Site(name=name, inputs=rows, outputs=columns, transposed=True)
