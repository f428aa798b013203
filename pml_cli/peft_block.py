"""The paper's placement inside PEFT: a LoRA layer in parallel to a whole MLP block.

PEFT knows linear modules; this teaches it the block, by its mechanism for custom modules. An
adapter that pml saved with `adapter=mlp_block` then loads in three lines:

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = load_mlp_block(model, "outputs/sweep/<run>/adapter")
    model.generate(...)

Activation functions make the block non-linear, so the adapter cannot be merged into its weights:
`merge_and_unload` says so, `unload` takes the adapter off.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pml_cli.errors import UserError


class MlpBlockLora(nn.Module, LoraLayer):  # type: ignore[misc]  # peft has no types
    """block(x) + dropout(x @ A.T @ B.T * scaling): the adapter bypasses the block, and dropout falls on its output."""

    base_layer: nn.Module  # what nn.Module and LoraLayer hold, named for the type checker
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
        """`width`: the hidden size, which the block reads and writes; the rest is what PEFT passes to its layers."""
        nn.Module.__init__(self)
        self.width = width
        LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, **kwargs)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return self.width, self.width  # PEFT asks; from a block it could not tell

    def update_layer(
        self,
        adapter_name: str,
        r: int,
        lora_alpha: int,
        config: LoraConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Add one adapter. PEFT hands over its settings whole (`config`); its older versions, one by one."""
        dropout = kwargs["lora_dropout"] if config is None else config.lora_dropout
        if r < 1:
            raise ValueError(f"r={r}: must be at least 1")
        self.r[adapter_name], self.lora_alpha[adapter_name], self.scaling[adapter_name] = (
            r,
            lora_alpha,
            lora_alpha / r,
        )
        self.use_rslora[adapter_name] = self.use_dora[adapter_name] = self.lora_bias[
            adapter_name
        ] = False
        weight = next(self.base_layer.parameters())
        down, up = nn.Linear(self.width, r, bias=False), nn.Linear(r, self.width, bias=False)
        nn.init.zeros_(
            up.weight
        )  # down keeps nn.Linear's Kaiming uniform, which our own bank has too
        self.lora_A[adapter_name] = down.to(weight.device, weight.dtype)
        self.lora_B[adapter_name] = up.to(weight.device, weight.dtype)
        self.lora_dropout[adapter_name] = nn.Dropout(dropout) if dropout else nn.Identity()
        self.set_adapter(self.active_adapters)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return out
        for name in self.active_adapters:
            if name in self.lora_A:
                down, up = self.lora_A[name], self.lora_B[name]
                added = up(down(x.to(next(down.parameters()).dtype)))
                out = out + self.lora_dropout[name](added * self.scaling[name]).to(out.dtype)
        return out

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError(
            "an adapter around a whole MLP block cannot be merged: the block is not linear"
        )

    def unmerge(self) -> None:
        """Nothing was merged."""


def mlp_block_config(model: nn.Module, rank: int, layer: int, dropout: float = 0.0) -> LoraConfig:
    """Settings for `peft.get_peft_model`: one adapter around the MLP block of a 0-based decoder layer, scale 1.

    Raises:
        UserError: the model has no such block.
    """
    names = [name for name, _ in model.named_modules() if name.endswith(f".{layer}.mlp")]
    if len(names) != 1:
        raise UserError(f"layer={layer}: this model has no module named <layers>.{layer}.mlp")
    config = LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=names, task_type="CAUSAL_LM"
    )
    _register(config, model)
    return config


def load_mlp_block(model: nn.Module, folder: str | Path) -> PeftModel:
    """A transformers model with an adapter on it that pml saved with `adapter=mlp_block`.

    Raises:
        UserError: no such folder, an adapter of another kind, or one made for another model.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter_config.json here; give the adapter/ folder of a run")
    config = LoraConfig.from_pretrained(str(folder))
    _register(config, model)
    return PeftModel.from_pretrained(model, str(folder), config=config)


def _register(config: LoraConfig, model: nn.Module) -> None:
    """Tell PEFT which class wraps the blocks that the config names."""
    modules = dict(model.named_modules())
    for name in config.target_modules:
        if name not in modules:
            raise UserError(
                f"target_modules: this model has no module {name!r}; was the adapter made for another one?"
            )
        if not name.endswith(".mlp"):
            raise UserError(
                f"target_modules: {name!r} is no MLP block; load it with peft.PeftModel.from_pretrained"
            )
        width = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
        config._register_custom_module({type(modules[name]): partial(MlpBlockLora, width=width)})
