"""Finds the parts of a transformers model: decoder layers, norms, MLP blocks, linear modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pml_cli.config.schema import Model
from pml_cli.errors import UserError, did_you_mean
from pml_cli.model.adapter_bank import Site
from pml_cli.model.families import ModelFamily

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_layers(model: PreTrainedModel, settings: Model) -> nn.ModuleList:
    """The decoder layers of a transformers model.

    Raises:
        UserError: it has no list of as many modules as its config has layers.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module

    reason = f"no list of {count} decoder layers found; this family is not supported"
    raise UserError(f"model={settings.name}: {reason}")


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
        UserError: the layer has no module named mlp.
    """
    mlp = _first_module(layer, ("mlp",))
    if mlp is None:
        reason = f"the layers of model={settings.name} have no module named mlp"
        raise UserError(f"adapter=mlp_block: {reason}")
    return mlp


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
    """Modules of a layer whose weight is a matrix, by name."""
    matrices = {}
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2:
            matrices[name] = module
    return matrices


def _site(name: str, module: nn.Module) -> Site:
    weight: Any = module.weight
    rows, columns = (int(size) for size in weight.shape)
    # GPT-2's Conv1D stores (in, out), Linear (out, in).
    if isinstance(module, nn.Linear):
        return Site(name=name, inputs=columns, outputs=rows)
    return Site(name=name, inputs=rows, outputs=columns, transposed=True)
