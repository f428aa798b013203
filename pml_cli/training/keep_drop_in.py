"""`loss.keep` in other trainers: the energy of LoRA modules of PEFT, and its limit.

The same numbers as in pml's own trainer (energy.py, keep_harm.py), from the model as PEFT has it.
Of the generic text nothing is left out, since nothing is known of what the training learns; its
dialogues are in no chat template.

Shapes: I inputs of a module, r rank, n windows of T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pml_cli.config.schema import Loss
from pml_cli.data.generic_text import KINDS, generic_text, mixed
from pml_cli.data.text_file import read_text
from pml_cli.data.windows import WINDOW
from pml_cli.errors import UserError
from pml_cli.model.chunk_sizes import PREFIX_ROWS
from pml_cli.training.energy import Moments, SiteSums, add_call, groups, of_width
from pml_cli.training.keep_harm import HarmLimit, initial_weight, settle
from pml_cli.training.keep_text import WindowOrder
from pml_cli.training.limits import MEASURE_EVERY, MEASURED_WINDOWS


class LoraPenalty:
    """The penalty on the LoRA modules of a model in training.

    Attributes:
        weight: lambda of the present step, ().
    """

    def __init__(self, loss: Loss, model: nn.Module, ids_nT: Tensor, seed: int = 0) -> None:
        """Read the generic text once, without the adapter.

        Args:
            loss: its settings.
            model: a model with LoRA modules of PEFT.
            ids_nT: windows of token ids, (n, T); the first token is not scored.
            seed: of the order in which windows are measured.

        Raises:
            UserError: the model is not of that kind, or cannot read the windows.
        """
        self._model = model
        option = f"loss.{_option(loss)}"
        self._lora = _lora_modules(model, option)
        _check_ids(ids_nT, model, option)
        self._ids_nT = ids_nT.to(next(model.parameters()).device)
        self._order = WindowOrder(range(len(ids_nT)), seed)

        self._is_limited = loss.keep_harm > 0
        # 0 stands for no limit.
        limit_1 = torch.tensor([loss.keep_harm or math.inf])
        weight_1 = torch.tensor([initial_weight(loss)])
        self._limit = HarmLimit(weight_1, limit_1)
        self.weight = self._limit.weight_K[0]

        self._moments: Moments = {}
        widths = {name: module.in_features for name, module in self._lora.items()}
        with _unadapted(model, self._lora.values()):
            for names in groups(widths):
                self._moments |= self._moments_of(names, widths)
            self._base_nll_nT = self._nll(range(len(ids_nT)))

    def _moments_of(self, names: Sequence[str], widths: Mapping[str, int]) -> Moments:
        """The relative second moments of some modules."""
        tokens = self._ids_nT.shape[1] - 1
        sums: dict[str, SiteSums] = {}
        with ExitStack() as hooks:
            for name in names:
                module = self._lora[name].get_base_layer()
                dtype = torch.promote_types(module.weight.dtype, torch.float32)
                like = torch.empty(0, dtype=dtype, device=module.weight.device)
                sums[name] = SiteSums(widths[name], like)

                hook = partial(add_call, sums[name], tokens)
                handle = module.register_forward_hook(hook)
                hooks.callback(handle.remove)

            for rows in torch.arange(len(self._ids_nT)).split(PREFIX_ROWS):
                self._logits(rows.tolist())
        return {name: of_width(sums.pop(name).relative_moment()) for name in names}

    def energy(self) -> Tensor:
        """The energy of the adapter as it is, (); differentiable."""
        total: Tensor | None = None
        for name, module in self._lora.items():
            (adapter,) = module.active_adapters
            A_Ir = module.lora_A[adapter].weight.T
            B_rO = module.lora_B[adapter].weight.T
            ACA_rr = A_Ir.T @ (self._moments[name] @ A_Ir)
            BB_rr = B_rO @ B_rO.T

            square = module.scaling[adapter] ** 2
            energy = square * (ACA_rr * BB_rr).sum()
            total = energy if total is None else total + energy.to(total.device)
        assert total is not None
        return total

    @torch.no_grad()
    def begin_step(self, step: int, progress: float) -> None:
        """Fix lambda for a step, and move it for the next one.

        Args:
            step: number of steps done.
            progress: fraction of the training that is done.
        """
        self.weight = self._limit.weight_K[0].clone()
        if not self._is_limited:
            return

        energy_1 = self.energy().float().cpu()[None]
        # Before the first step an adapter adds nothing.
        if step > 0 and step % MEASURE_EVERY == 0:
            rows = self._order.draw(step // MEASURE_EVERY, MEASURED_WINDOWS)
            harm = self.harm(rows)
            self._limit.measured([0], torch.tensor([harm]), energy_1)
        self._limit.update(energy_1, progress)

    @torch.no_grad()
    def harm(self, rows: Sequence[int] | None = None) -> float:
        """Nats per token that the adapter adds to the loss of some windows, or of all."""
        read = range(len(self._ids_nT)) if rows is None else rows
        with _evaluating(self._model):
            nll = self._nll(read)
        return (nll - self._base_nll_nT[list(read)]).mean().item()

    @torch.no_grad()
    def settle(self) -> None:
        """At the end of the training: scale the adapter down where it is above its limit."""
        if self._is_limited:
            settle(self._limit.limit_K.item(), self.harm, self._scale)

    def _scale(self, factor: float) -> None:
        for module in self._lora.values():
            (adapter,) = module.active_adapters
            module.lora_B[adapter].weight.mul_(factor)

    def _nll(self, rows: Sequence[int]) -> Tensor:
        """Loss of every token of some windows but their first, (rows, T - 1)."""
        parts = []
        for part in torch.tensor(list(rows)).split(PREFIX_ROWS):
            logits_bTV = self._logits(part.tolist()).float()
            targets_bT = self._ids_nT[part][:, 1:].to(logits_bTV.device)
            parts.append(cross_entropy(logits_bTV.transpose(1, 2), targets_bT, reduction="none"))
        return torch.cat(parts)

    @torch.no_grad()
    def _logits(self, rows: Sequence[int]) -> Tensor:
        """Logits of some windows, (rows, T - 1, V): the last token is only predicted."""
        ids_bT = self._ids_nT[list(rows)][:, :-1]
        logits: Tensor = self._model(input_ids=ids_bT, use_cache=False).logits
        return logits


def keep_windows(loss: Loss, tokenizer: Any, context: float = math.inf) -> Tensor:
    """Windows of the generic text of a loss, (n, T).

    Args:
        loss: its `keep_text` names a file; null: the text that ships with pml.
        tokenizer: of transformers, or a processor that holds one.
        context: most tokens that the model reads.

    Raises:
        UserError: there is no tokenizer, or the text fills no window.
    """
    option = f"loss.{_option(loss)}"
    if tokenizer is None:
        needed = (
            "pass Trainer(processing_class=tokenizer), or token ids as MemFTLoss(..., keep_ids=ids)"
        )
        raise UserError(f"{option}: needs generic text; {needed}")

    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if loss.keep_text is None:
        texts = [generic_text(kind, "keep") for kind in KINDS]
    else:
        texts = [_text_of(loss.keep_text)]

    begin = _begin(tokenizer)
    size = int(min(WINDOW, context - len(begin)))
    by_text = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        starts = range(0, len(ids) - size + 1, size)
        by_text.append([begin + ids[start : start + size] for start in starts])

    if loss.keep_text is not None:
        # The others are left to measure forgetting.
        by_text = [by_text[0][::2]]
    windows = mixed(by_text)
    if not windows:
        raise UserError(f"{option}: loss.keep_text has fewer than {size} tokens")
    return torch.tensor(windows)


def _begin(tokenizer: Any) -> list[int]:
    """What every window begins with: begin-of-text, else end-of-text, else nothing."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    return []


def _text_of(path: str) -> str:
    try:
        return read_text(path)
    except UserError as error:
        raise UserError(str(error).replace("data.path=", "loss.keep_text=")) from error


def _option(loss: Loss) -> str:
    return f"keep={loss.keep:g}" if loss.keep else f"keep_harm={loss.keep_harm:g}"


def context_of(model: Any) -> float:
    """Most tokens that a model of transformers reads; infinite: no such number."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or math.inf


def _check_ids(ids_nT: Tensor, model: Any, option: str) -> None:
    """Refuse windows that the model cannot read."""
    # Of the input, which lacks the last token, position 0 is left out.
    is_window = ids_nT.dim() == 2 and len(ids_nT) > 0 and ids_nT.shape[1] > 2
    if not is_window or ids_nT.is_floating_point():
        shape = f"{ids_nT.dtype} of shape {tuple(ids_nT.shape)}"
        raise UserError(f"{option}: keep_ids is {shape}; must be token ids (n, T), T at least 3")

    tokens = ids_nT.shape[1] - 1
    if tokens > context_of(model):
        raise UserError(
            f"{option}: keep_ids has windows of {tokens + 1} tokens; "
            f"the model reads {context_of(model)}"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    if ids_nT.min() < 0 or ids_nT.max() >= vocabulary:
        raise UserError(f"{option}: keep_ids has ids that are not from 0 to {vocabulary - 1}")


def _lora_modules(model: nn.Module, option: str) -> dict[str, Any]:
    """The LoRA modules of a model, by name."""
    from peft.tuners.lora import LoraLayer

    lora: dict[str, Any] = {}
    covered: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            _check_plain(name, module, option)
            lora[name] = module
            # A bias of the module beside it is trained where LoraConfig(bias=) says so.
            matrices = [*module.lora_A.parameters(), *module.lora_B.parameters()]
            covered |= {id(parameter) for parameter in matrices}
    if not lora:
        raise UserError(f"{option}: the model has no LoRA modules of PEFT")

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in covered:
            raise UserError(
                f"{option}: requires that only LoRA weights are trained, but {name} is trainable "
                "too (set requires_grad=False)"
            )
    return lora


def _check_plain(name: str, module: Any, option: str) -> None:
    """Refuse what adds something else than scaling * x A B."""
    adapters = list(module.active_adapters)
    # Not of an embedding, of stacked experts, or of layers that have a matrix of their own.
    is_plain = len(adapters) == 1 and adapters[0] in module.lora_A
    is_plain = is_plain and isinstance(module.lora_A[adapters[0]], nn.Linear)
    is_plain = is_plain and not hasattr(module, "parameter_name")
    changes = [module.use_dora, module.lora_bias, module.lora_variant]
    if not is_plain or any(change.get(adapters[0]) for change in changes):
        raise UserError(
            f"{option}: {name}: unsupported adapter; it must be exactly one plain LoRA adapter on "
            "a linear layer (no DoRA, no LoRA bias, no embedding)"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout while inside."""
    is_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(is_training)


@contextmanager
def _unadapted(model: nn.Module, lora: Iterable[Any]) -> Iterator[None]:
    """The base model while inside."""
    # Module by module: a model of transformers with LoRA in it has no `disable_adapter`.
    for module in lora:
        module.enable_adapters(False)
    try:
        with _evaluating(model):
            yield
    finally:
        for module in lora:
            module.enable_adapters(True)
