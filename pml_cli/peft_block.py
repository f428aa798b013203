"""The paper's placement inside PEFT: a LoRA layer in parallel to a whole MLP block.

PEFT adapts linear modules; this teaches it the block, by its mechanism for custom modules. An
adapter that pml saved with `adapter=mlp_block` then loads in three lines:

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = load_mlp_block(model, "outputs/sweep/<run>/adapter")
    model.generate(...)

The block is not linear, so the adapter cannot be merged into its weights: `merge_and_unload` raises
NotImplementedError, `unload` removes the adapter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from pml_cli.errors import UserError, first_line, shortened
from pml_cli.io import file_fault
from pml_cli.model.modules import MLP_NAMES
from pml_cli.validation import Number, Size, Text, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# In the folder of an adapter.
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

__all__ = ["MlpBlockLora", "load_mlp_block", "mlp_block_config"]


class ConfigFields(TypedDict):
    """What is used of adapter_config.json."""

    r: Size
    target_modules: list[Text]
    lora_alpha: NotRequired[Number]
    lora_dropout: NotRequired[Number]


class MlpBlockLora(nn.Module, LoraLayer):  # type: ignore[misc]  # peft has no types
    """block(x) + dropout(x @ A.T @ B.T * scaling): the adapter bypasses the block.

    Shapes: x and output (..., D), A (r, D) and B (D, r) for hidden size D and rank r.
    """

    # Attributes of nn.Module and LoraLayer, declared for the type checker.
    base_layer: nn.Module
    active_adapters: list[str]
    set_adapter: Callable[[list[str]], None]
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    lora_dropout: nn.ModuleDict
    r: dict[str, int]
    lora_alpha: dict[str, int]
    scaling: dict[str, float]
    use_rslora: dict[str, bool]
    use_dora: dict[str, bool]
    lora_bias: dict[str, bool]

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        width: int,
        r: int,
        lora_alpha: int,
        **kwargs: Any,
    ) -> None:
        """Wrap a block and add one adapter.

        Args:
            base_layer: the MLP block.
            adapter_name: name of the adapter in PEFT.
            width: hidden size D, which the block reads and writes.
            r: rank of the adapter.
            lora_alpha: the scale is lora_alpha / r.
            **kwargs: other arguments that PEFT passes to its layers.
        """
        nn.Module.__init__(self)
        # LoraLayer asks for the sizes of the block while it is initialised.
        self.width = width
        LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, **kwargs)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        """Sizes of input and output, which PEFT cannot read from a block."""
        return self.width, self.width

    def update_layer(
        self,
        adapter_name: str,
        r: int,
        lora_alpha: int,
        config: LoraConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Add one adapter.

        Args:
            adapter_name: name of the adapter in PEFT.
            r: its rank.
            lora_alpha: the scale is lora_alpha / r.
            config: its settings; older versions of PEFT pass them one by one instead.
            **kwargs: settings by name.

        Raises:
            ValueError: r is below 1.
        """
        if r < 1:
            raise ValueError(f"r={r}: must be at least 1")

        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = lora_alpha
        self.scaling[adapter_name] = lora_alpha / r
        self.use_rslora[adapter_name] = False
        self.use_dora[adapter_name] = False
        self.lora_bias[adapter_name] = False

        down = nn.Linear(self.width, r, bias=False)
        up = nn.Linear(r, self.width, bias=False)
        # `down` keeps nn.Linear's Kaiming uniform, as in pml's own adapters.
        nn.init.zeros_(up.weight)
        weight = next(self.base_layer.parameters())
        self.lora_A[adapter_name] = down.to(weight.device, weight.dtype)
        self.lora_B[adapter_name] = up.to(weight.device, weight.dtype)

        p = kwargs["lora_dropout"] if config is None else config.lora_dropout
        self.lora_dropout[adapter_name] = nn.Dropout(p) if p else nn.Identity()
        self.set_adapter(self.active_adapters)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Output of the block with all active adapters added, (..., D), as the block returns it.

        Args:
            x: input of the block, (..., D).
            *args: passed to the block.
            **kwargs: passed to the block.
        """
        output = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return output

        # Some blocks also return the scores of their router.
        more_outputs = output[1:] if isinstance(output, tuple) else None
        output = output if more_outputs is None else output[0]
        for name in self.active_adapters:
            if name not in self.lora_A:
                continue
            down = self.lora_A[name]
            up = self.lora_B[name]
            adapter_dtype = next(down.parameters()).dtype
            delta = up(down(x.to(adapter_dtype))) * self.scaling[name]
            output = output + self.lora_dropout[name](delta).to(output.dtype)
        return (output, *more_outputs) if more_outputs is not None else output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Always refused; the arguments are PEFT's.

        Raises:
            NotImplementedError: the block is not linear.
        """
        raise NotImplementedError(
            "an adapter around a whole MLP block cannot be merged: the block is not linear"
        )

    def unmerge(self) -> None:
        """Nothing to do, as nothing is ever merged."""


def mlp_block_config(
    model: PreTrainedModel, rank: int, layer: int, dropout: float = 0.0
) -> LoraConfig:
    """Settings for `peft.get_peft_model`: an adapter around the MLP block of one layer, scale 1.

    Args:
        model: a model of transformers.
        rank: rank of the adapter.
        layer: the decoder layer, 0-based.
        dropout: probability that an element of the adapter's output is zeroed.

    Raises:
        UserError: the model has no such block, or a value out of range.
    """
    if isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1:
        raise UserError(f"rank={rank!r:.80}: must be an integer, at least 1")
    if not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout!r:.80}: must be a number, at least 0 and below 1")
    suffixes = tuple(f".{layer}.{name}" for name in MLP_NAMES)
    names = [name for name, _module in model.named_modules() if name.endswith(suffixes)]
    if len(names) != 1:
        raise UserError(f"layer={layer}: this model has no module named <layers>.{layer}.mlp")

    config = LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=names, task_type="CAUSAL_LM"
    )
    _register_blocks(config, model)
    return config


def load_mlp_block(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """A model with an adapter on it that pml saved with `adapter=mlp_block`.

    Args:
        model: the model of transformers that the adapter was trained on.
        folder: the adapter/ folder of a run.

    Raises:
        UserError: there is no such folder, it is damaged, or the adapter is of another kind or for
            another model.
    """
    for name, reason in ((CONFIG, "give the adapter/ folder of a run"), (WEIGHTS, "copy it anew")):
        fault = file_fault(Path(folder) / name)
        if fault:
            raise UserError(f"{shortened(str(folder))}: {name}: {fault}; {reason}")

    config = _read_config(Path(folder))
    _register_blocks(config, model)
    try:
        return PeftModel.from_pretrained(model, str(folder), config=config)
    # Weights that are none, or of other shapes.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = f"not the weights of an adapter for this model ({first_line(error)})"
        raise UserError(f"{Path(folder) / WEIGHTS}: {reason}") from error


def _read_config(folder: Path) -> LoraConfig:
    """The settings of a saved adapter.

    Its `peft_type` is not PEFT's, so that PEFT by itself refuses the folder and says where to look.
    """
    fields = read_json(folder / CONFIG, ConfigFields, "copy the adapter anew")
    lora_names = {field.name for field in dataclasses.fields(LoraConfig)}
    lora_fields = {name: value for name, value in fields.items() if name in lora_names}
    try:
        return LoraConfig(**lora_fields | {"peft_type": "LORA"})
    # PEFT checks what belongs together.
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: {first_line(error)}") from error


def _register_blocks(config: LoraConfig, model: PreTrainedModel) -> None:
    """Tell PEFT which class wraps the blocks that a config names.

    Raises:
        UserError: the model lacks one of them, or one is no MLP block.
    """
    modules = dict(model.named_modules())
    width = model.config.get_text_config().hidden_size
    for name in config.target_modules:
        if name not in modules:
            reason = f"this model has no module {name!r}; was the adapter made for another one?"
            raise UserError(f"target_modules: {reason}")
        if name.split(".")[-1] not in MLP_NAMES:
            reason = f"{name!r} is no MLP block; load it with peft.PeftModel.from_pretrained"
            raise UserError(f"target_modules: {reason}")

        wrapper = partial(MlpBlockLora, width=width)
        config._register_custom_module({type(modules[name]): wrapper})
