"""MemFT inside a trainer one already has: a loss for transformers' `Trainer(compute_loss_func=...)` and TRL's SFTTrainer.

    loss = MemFTLoss("memft_margin")
    trainer = Trainer(..., compute_loss_func=loss, callbacks=[MemFTCallback(loss)])

Scores and weights are the engine's own. What is normalised by what: one optimiser step is

    L = sum_t w_t v_t / (sum_t w_t + eps)

with both sums over all scored tokens of the step: of every row, every accumulated micro-batch and every device. The weights
of later micro-batches are not known when an earlier one is done, so each is divided by the sum so far, and what has been
accumulated before is scaled down to it: after every micro-batch the gradient is that of the batch so far, and clipping sees
the right one. So 4 micro-batches of 2 equal one batch of 8. That needs the parameters and the start of every step, which the
callback brings; without accumulation and without the hinge the loss also works alone, one batch a step.

Shapes: B rows, T tokens, V vocabulary, N scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import TrainerCallback

from pml_cli.config.load import option_settings
from pml_cli.config.schema import Loss, MemftMarginLoss, MemftOtLoss
from pml_cli.config.setting import faults
from pml_cli.errors import UserError
from pml_cli.model.head import TokenScores, logit_nll
from pml_cli.stats import LN2
from pml_cli.training.losses import EPS, State, Tokens, Weighted, fresh_state, weigh

IGNORED = -100  # label of what is not scored
BASE = 1_000_003  # of the hash of a sample's labels


class MemFTLoss:
    """Callable as Trainer's `compute_loss_func`: (outputs, labels, num_items_in_batch=...) to a scalar.

    In evaluation (no gradient) it is the plain mean cross-entropy, so that losses of any method compare.
    """

    def __init__(self, loss: str | Loss = "memft_ot", **settings: Any) -> None:
        """
        Args:
            loss: sft, memft_ot, memft_sw, memft_margin, memft_margin_facts, memft_sw_axolotl, or a loss of pml_cli.config.
            settings: of a loss given by name, such as threshold=0.5.

        Raises:
            UserError: an unknown loss or setting, or a value out of range.
        """
        self.loss = _declared(loss, settings)
        if found := faults(self.loss, "loss."):
            raise UserError(*found)
        self.averaged = True  # Trainer multiplies by the number of devices (average_tokens_across_devices), before the mean
        self.parameters: list[Tensor] | None = None  # those in training, from the callback
        self.weights: Weighted | None = None  # of the latest batch in training, (1, N)
        self.remembered = fresh_state(
            [self.loss], 1, torch.device("cpu")
        )  # what is known of a sample not seen yet
        self.memory: dict[
            int, tuple[float, ...]
        ] = {}  # hash of a sample's labels to its values of `remembered`
        self.begin_step(None)
        self.begin_log()

    def begin_step(self, progress: float | None) -> None:
        """Called by the callback before the first micro-batch of every optimiser step."""
        self.progress = progress  # share of the training done
        self._least = self._least_margin()  # the same for all micro-batches
        self._sums: Tensor | None = None  # of the step so far
        self._mean: Tensor | float = 0.0

    def begin_log(self) -> None:
        self.noted: list[
            Tensor
        ] = []  # (tokens, above the threshold, stubborn) of each batch since the last log

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """
        Args:
            outputs: with logits (B, T, V), which predict the label one place to the right.
            labels: (B, T), -100 where nothing is scored.
            num_items_in_batch: as Trainer counts them: scored tokens of the optimiser step, over micro-batches and devices.
        """
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        rows, positions, target_N, scores = _scored(logits, labels)
        if not torch.is_grad_enabled():
            count = len(target_N) if num_items_in_batch is None else num_items_in_batch
            return scores.nll.sum() / count
        self._note(scores, target_N)
        samples = _hashes(labels) if self.remembered else []
        tokens = Tokens(
            scores.nll[None], scores.margin[None], (scores.argmax == target_N)[None], torch.ones_like(scores.nll)[None],
            _places(samples, rows)[None], positions[None],
        )  # fmt: skip
        weighted = self._weigh(tokens, samples)
        self.weights = Weighted(*(part.detach() for part in weighted))
        return self._normalised(weighted, labels, num_items_in_batch)

    def _weigh(self, tokens: Tokens, samples: list[int]) -> Weighted:
        loss = self.loss
        if isinstance(
            loss, MemftOtLoss
        ):  # whether any token of the whole step is active shows in _normalised
            loss = MemftOtLoss(threshold=loss.threshold, when_done="zero")
        if isinstance(loss, MemftMarginLoss) and 0 < loss.switch < 1 and self.progress is None:
            raise UserError(
                "memft_margin switches to the hinge half way: add MemFTCallback(loss) to the trainer's callbacks"
            )
        state = self._recall(samples, tokens.nll.device) if samples else {}
        weighted, state = weigh(loss, tokens, state, self.progress or 0.0)
        if samples:
            self._remember(samples, state)
        return weighted

    def _recall(self, samples: list[int], device: torch.device) -> State:
        """What is remembered of the batch's samples; of the margin instead the least of all samples, before this step."""
        unique = list(dict.fromkeys(samples))
        if "least" in self.remembered:
            if self.parameters is None:  # no callback: every batch is a step
                self._least = self._least_margin()
            return {
                "least": torch.tensor([[*[math.inf] * len(unique), self._least]], device=device)
            }
        unseen = [int(values.item()) for values in self.remembered.values()]
        known = torch.tensor(
            [self.memory.get(sample, unseen) for sample in unique], dtype=torch.int64, device=device
        )
        return {name: known[None, :, i] for i, name in enumerate(self.remembered)}

    def _least_margin(self) -> float:
        return (
            min((values[0] for values in self.memory.values()), default=math.inf)
            if "least" in self.remembered
            else math.inf
        )

    def _remember(self, samples: list[int], state: State) -> None:
        unique = list(dict.fromkeys(samples))
        values = zip(
            *(state[name][0, : len(unique)].tolist() for name in self.remembered), strict=True
        )
        found = dict(zip(unique, values, strict=True))
        if _devices() > 1:  # a sample may come to another device in the next epoch
            everyones: list[Any] = [None] * _devices()
            distributed.all_gather_object(everyones, found)
            found = {sample: known for one in everyones for sample, known in one.items()}
        self.memory |= found

    def _normalised(self, weighted: Weighted, labels: Tensor, items: Tensor | int | None) -> Tensor:
        """The weighted mean over the step so far; what was accumulated before is scaled to it.

        Its gradient is that of this batch over the sum of all weights so far, its value what the batch adds to the mean: the
        values of a step, which Trainer adds up for its log, add up to the loss.
        """
        if self.parameters is None and items is not None and _accumulates(items, labels):
            raise UserError(
                "gradient accumulation: add MemFTCallback(loss) to the trainer's callbacks"
            )
        value, weight = weighted.value.detach(), weighted.weight
        # with and without the weights: numerator, divisor
        sums = torch.stack(
            [(weight * value).sum(), weight.sum(), value.sum(), torch.ones_like(value).sum()]
        )
        if _devices() > 1:
            distributed.all_reduce(sums)
        if self.parameters is None:  # no callback: every batch is a step
            self._sums, self._mean = None, 0.0
        before = torch.zeros_like(sums) if self._sums is None else self._sums
        self._sums = now = before + sums
        alike = torch.zeros_like(
            sums[0], dtype=torch.bool
        )  # whether all tokens count alike: none of the step is active
        if isinstance(self.loss, MemftOtLoss) and self.loss.when_done == "mean":
            alike = now[1] == 0
        old, new = (torch.where(alike, part[2:], part[:2]) for part in (before, now))
        # with the first active token of a step, old is 0: what counted alike before is taken back
        divisor = new[1] + EPS
        self._scale((old[1] + EPS * (old[1] > 0)) / divisor)
        mean = new[0] / divisor
        added, self._mean = mean - self._mean, mean
        used = torch.where(alike, torch.ones_like(weight), weight)
        share = (used * weighted.value).sum() / divisor
        if self.averaged and items is not None:  # then Trainer multiplies by the devices
            return share - share.detach() + added / _devices()
        return (share - share.detach()) * _devices() + added

    def _scale(self, factor: Tensor) -> None:
        for parameter in self.parameters or []:
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad.dtype))

    def _note(self, scores: TokenScores, target_N: Tensor) -> None:
        above = (scores.nll.detach() < LN2).sum()
        self.noted.append(
            torch.stack([torch.full_like(above, len(target_N)), above, len(target_N) - above])
        )


class MemFTCallback(TrainerCallback):  # type: ignore[misc]
    """Tells the loss where the training is, and puts into the trainer's log what became of its tokens since the last one."""

    def __init__(self, loss: MemFTLoss) -> None:
        self.loss = loss

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        accumulates = args.gradient_accumulation_steps > 1
        if args.n_gpu > 1:
            raise UserError(
                "several GPUs in one process (DataParallel): start one process a GPU, with torchrun"
            )
        if accumulates and (args.deepspeed or args.fsdp):
            raise UserError(
                "gradient accumulation with DeepSpeed or FSDP: gradients lie where the loss cannot scale them"
            )
        self.loss.parameters = [p for p in model.parameters() if p.requires_grad]
        self.loss.averaged = args.average_tokens_across_devices
        self.loss.memory.clear()
        self.loss.begin_log()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.loss.begin_step(state.global_step / max(state.max_steps, 1))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs is None or "loss" not in logs or not self.loss.noted:
            return
        sums = torch.stack(self.loss.noted).sum(0)
        if _devices() > 1:
            distributed.all_reduce(sums)
        tokens, above, stubborn = sums.tolist()
        found = {"share_above_threshold": above / max(tokens, 1), "stubborn_tokens": stubborn}
        logs.update(found)
        state.log_history[-1].update(found)
        self.loss.begin_log()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.loss.parameters = None


def _declared(loss: str | Loss, settings: dict[str, Any]) -> Loss:
    if not isinstance(loss, str):
        return loss
    option = option_settings("loss", loss)
    kind: Any = type(option)
    settings = {**vars(option), **settings}
    settings.pop("kind", None)
    known = [name for name in vars(kind()) if name != "kind"]
    if unknown := [name for name in settings if name not in known]:
        raise UserError(
            f"loss.{unknown[0]}: no such setting of {loss}; allowed: {', '.join(known) or 'none'}"
        )
    for name, value in settings.items():
        wanted = type(getattr(kind(), name))
        if not isinstance(value, (int, float) if wanted is float else wanted):
            raise UserError(f"loss.{name}={value!r}: must be {wanted.__name__}")
    made = kind(**settings)
    assert isinstance(made, Loss)
    return made


def _scored(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, TokenScores]:
    """Row, position within the row's target and id of every scored token, and its scores."""
    target = labels[:, 1:].to(logits.device)
    scored = target != IGNORED
    positions = (scored.cumsum(1) - 1)[scored]
    rows = scored.nonzero()[:, 0]
    return rows, positions, target[scored], logit_nll(logits[:, :-1][scored], target[scored])


def _hashes(labels: Tensor) -> list[int]:
    """What a sample is known by: its scored tokens. Waits for the device once."""
    scored = labels[:, 1:] != IGNORED
    place = scored.cumsum(1)
    terms = torch.where(
        scored, (labels[:, 1:] + 1) * _powers(labels.shape[1], labels.device)[place], 0
    )
    return [int(x) for x in terms.sum(1).tolist()]


def _powers(count: int, device: torch.device) -> Tensor:
    """1, BASE, BASE**2 ... modulo 2**64."""
    out, value = [], 1
    for _ in range(count + 1):
        out.append(value - 2**64 if value >= 2**63 else value)
        value = value * BASE % 2**64
    return torch.tensor(out, device=device)


def _places(samples: list[int], rows: Tensor) -> Tensor:
    """The place of each token's row among the distinct samples: a sample that comes twice in a batch is one."""
    order = {sample: i for i, sample in enumerate(dict.fromkeys(samples))}
    return (
        torch.tensor([order[sample] for sample in samples], device=rows.device)[rows]
        if samples
        else rows
    )


def _devices() -> int:
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def _accumulates(items: Tensor | int, labels: Tensor) -> bool:
    """Whether an optimiser step has more tokens than this batch of all devices; waits for the device."""
    count = (labels != IGNORED).sum()
    if _devices() > 1:
        distributed.all_reduce(count)
    return float(items) > float(count)
