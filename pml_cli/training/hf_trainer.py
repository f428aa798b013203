"""The losses in other trainers: transformers' `Trainer` and TRL's SFTTrainer.

    loss = MemFTLoss("memft_margin")
    trainer = Trainer(..., compute_loss_func=loss, callbacks=[MemFTCallback(loss)])

Scores and weights are those of pml's own trainer. One optimiser step minimises

    L = sum_t w_t v_t / (sum_t w_t + eps)

with both sums over all scored tokens of the step: of every row, every accumulated micro-batch and
every device. The weights of later micro-batches are unknown while an earlier one is processed. So
each micro-batch divides by the running sum of weights and rescales the gradient accumulated so
far: after every micro-batch the gradient is that of the batch so far, and clipping sees the right
one. Four micro-batches of 2 equal one batch of 8. That needs the parameters and the beginning of
every step, which the callback passes on; without accumulation, and for losses that do not depend
on the progress of the training, the loss also works alone: every batch is a step.

A loss that remembers something of every sample (`memft_sw`, `memft_margin` while its target grows)
knows a sample by its prompt and its answer, as pml's own trainer does. Trainer passes labels alone;
the callback reads the prompts off the model's inputs. A loop of one's own gives `input_ids=`.

`keep=` and `keep_harm=` also hold PEFT's LoRA modules down on generic text (keep_drop_in.py).

Shapes: B rows, T tokens, V vocabulary, N scored tokens of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from pml_cli.config.load import option_settings
from pml_cli.config.schema import Loss
from pml_cli.config.setting import annotation, faults, keys, type_text
from pml_cli.errors import UserError
from pml_cli.model.head import TokenScores, logit_nll
from pml_cli.stats import LN2
from pml_cli.training.keep_drop_in import LoraPenalty, context_of, keep_windows
from pml_cli.training.losses.base import EPS, TokenLoss, Tokens, Weighted, as_token_loss
from pml_cli.training.sample_memory import IGNORED, SampleMemory, device_count, sample_hashes

# Of token ids.
ID_TYPES = (torch.int64, torch.int32)


class MemFTLoss:
    """Callable as Trainer's `compute_loss_func`: from outputs and labels to a scalar.

    In evaluation (without gradients) it is the plain mean cross-entropy, so that losses of any
    method compare.

    Attributes:
        loss: the loss and its settings.
        weighted: value, weight and pull of the scored tokens of the latest batch in training, (1,
            N) each.
    """

    def __init__(
        self,
        loss: str | Loss = "memft_ot",
        *,
        keep_ids: Tensor | None = None,
        **settings: Any,
    ) -> None:
        """
        Args:
            loss: an option of `loss=` such as memft_ot or memft_margin_facts, or an instance of
                its settings class.
            keep_ids: windows of token ids, (n, T), on which keep= and keep_harm= hold LoRA modules
                down; None: of keep_text=, by the trainer's processing_class.
            settings: of a loss given by name, such as threshold=0.5 or keep=22.

        Raises:
            UserError: an unknown loss or setting, a value out of range, or keep_by="kl".
        """
        self.loss = _loss_from(loss, settings)
        problems = faults(self.loss, "loss.")
        if problems:
            raise UserError(*problems)
        if self.loss.keeps and self.loss.keep_by != "energy":
            raise UserError(
                f"loss.keep_by={self.loss.keep_by}: must be energy in MemFTLoss; "
                "pml's own trainer has both"
            )
        is_ids = isinstance(keep_ids, Tensor) and keep_ids.ndim == 2 and keep_ids.dtype in ID_TYPES
        if keep_ids is not None and not is_ids:
            raise UserError("keep_ids: must be a tensor of token ids, (n, T)")
        self._keep_ids = keep_ids
        self._penalty: LoraPenalty | None = None
        self._micro_batch_loss = self.loss.for_micro_batch()
        self.weighted: Weighted | None = None

        self._memory = SampleMemory(self.loss)
        # Of the latest forward pass, with the callback: input ids and attention mask.
        self._inputs: tuple[Tensor, Tensor | None] | None = None
        # Known only with the callback, which also says when a step begins.
        self._parameters: list[Tensor] | None = None
        # Trainer's average_tokens_across_devices: the loss is multiplied by the number of devices.
        self._averaged = True
        self._logged_counts: list[Tensor] = []
        self.begin_step(None)

    def begin_training(
        self,
        parameters: Sequence[Tensor],
        *,
        averaged: bool = True,
    ) -> None:
        """Called by the callback: gradient accumulation is possible from here on.

        Args:
            parameters: those in training.
            averaged: Trainer's `average_tokens_across_devices`.
        """
        self._parameters = list(parameters)
        self._averaged = averaged

        # A second training starts without what the first one has seen.
        self._memory = SampleMemory(self.loss)
        self._logged_counts = []

    def begin_keeping(self, model: nn.Module, tokenizer: Any, seed: int) -> None:
        """Called by the callback where `keep` or `keep_harm` is set: reads the generic text.

        Args:
            model: with LoRA modules of PEFT.
            tokenizer: reads the text where no `keep_ids` were given; None: there is none.
            seed: of the training.

        Raises:
            UserError: the model or the text cannot be used.
        """
        ids_nT = self._keep_ids
        if ids_nT is None:
            ids_nT = keep_windows(self.loss, tokenizer, context_of(model))
        self._penalty = LoraPenalty(self.loss, model, ids_nT, seed)

    @property
    def kept(self) -> tuple[float, float] | None:
        """Lambda, and the harm to the generic text (nats per token); None: nothing is kept."""
        if self._penalty is None:
            return None
        return float(self._penalty.weight), self._penalty.harm()

    def end_training(self) -> None:
        """Called by the callback: from here on every batch is a step."""
        self._parameters = None
        self._inputs = None
        if self._penalty is not None:
            self._penalty.settle()

    @property
    def remembers_samples(self) -> bool:
        """Whether the loss keeps something of every sample from step to step."""
        return self._memory.is_used

    def begin_forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Called by the callback before every forward pass: what the next labels belong to.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 where there is padding.
        """
        self._inputs = (input_ids, attention_mask)

    def begin_step(self, progress: float | None, step: int = 0) -> None:
        """Called by the callback before the first micro-batch of every optimiser step.

        Args:
            progress: fraction of the training that is done; None: unknown.
            step: number of steps done.
        """
        self._progress = progress
        if self._penalty is not None and progress is not None:
            self._penalty.begin_step(step, progress)
        self._memory.begin_step()
        # `_numerators_and_divisors` of the step so far, and the loss that they give.
        self._sums: Tensor | None = None
        self._mean: Tensor | float = 0.0

    def take_log(self) -> dict[str, float]:
        """Counts of the tokens of all batches since the last call, over all devices.

        Returns:
            the fields added to Trainer's log; empty if there was no batch.
        """
        if not self._logged_counts:
            return {}

        counts = torch.stack(self._logged_counts).sum(0)
        self._logged_counts = []
        if device_count() > 1:
            distributed.all_reduce(counts)

        tokens, above = counts.tolist()
        return {
            "share_above_threshold": above / max(tokens, 1),
            "stubborn_tokens": tokens - above,
        }

    def __call__(
        self,
        outputs: Any,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of one batch.

        Args:
            outputs: with logits (B, T, V), which predict the label one position to the right.
            labels: (B, T), -100 where nothing is scored.
            num_items_in_batch: as Trainer counts them: scored tokens of the optimiser step, over
                micro-batches and devices.
            input_ids: (B, T); only a loss that remembers samples needs them, and only without
                `MemFTCallback`.
            attention_mask: (B, T), 0 where there is padding.

        Returns:
            a scalar; summed over the micro-batches of a step it is the loss of the step.

        Raises:
            UserError: the training needs `MemFTCallback`, or the labels do not fit the logits; on
                a GPU, which is not waited for, ids outside of the vocabulary give nan.
        """
        logits = _logits_of(outputs)
        if isinstance(labels, Tensor) and labels.ndim == 2 and logits.ndim == 3:
            # Prompt tuning puts virtual tokens in front of the batch.
            logits = logits[:, -labels.shape[1] :]
        _check_labels(labels, logits)
        target_BT = labels[:, 1:].to(logits.device)
        scored_BT = target_BT != IGNORED
        target_N = target_BT[scored_BT]
        # Only the rows that are scored: the softmax of the others is never formed.
        scores = logit_nll(logits[:, :-1][scored_BT], target_N)

        if not torch.is_grad_enabled():
            count = len(target_N) if num_items_in_batch is None else num_items_in_batch
            return scores.nll.sum() / count

        self._count_for_log(scores)
        if self._parameters is None:
            # Without the callback every batch is a step of its own.
            self.begin_step(self._progress)
            if num_items_in_batch is not None and _accumulates(num_items_in_batch, labels):
                raise UserError(
                    "gradient accumulation: add MemFTCallback(loss) to the trainer's callbacks"
                )
        if input_ids is not None:
            self._inputs = (input_ids, attention_mask)
        weighted = self._weigh(labels, target_N, scores)
        self.weighted = Weighted(*(values.detach() for values in weighted))
        is_counted = num_items_in_batch is not None
        return self._normalise(weighted, counted_by_trainer=is_counted)

    def _weigh(
        self,
        labels: Tensor,
        target_N: Tensor,
        scores: TokenScores,
    ) -> Weighted:
        """The scored tokens of the batch under the loss, (1, N) each."""
        if self.loss.needs_progress and self._progress is None:
            raise UserError(
                f"{self.loss.kind} changes in the course of the training: "
                "add MemFTCallback(loss) to the trainer's callbacks"
            )

        scored_BT = (labels[:, 1:] != IGNORED).to(target_N.device)

        # Without a memory any index serves: each row is a sample.
        hashes: list[int] = []
        sample_N = scored_BT.nonzero()[:, 0]
        if self._memory.is_used:
            hashes = self._hashes(labels)
            sample_B = self._memory.indices(hashes, target_N.device)
            sample_N = sample_B[sample_N]

        position_BT = scored_BT.cumsum(1) - 1

        # A pack of one cell without padding.
        tokens = Tokens(
            nll=scores.nll[None],
            margin=scores.margin[None],
            correct=(scores.argmax == target_N)[None],
            mask=torch.ones_like(scores.nll)[None],
            sample=sample_N[None],
            position=position_BT[scored_BT][None],
        )

        weighted, state = self._micro_batch_loss.weights(
            tokens, self._memory.at_step_start, self._progress or 0.0
        )
        if self._memory.is_used:
            self._memory.update(hashes, state)
        return weighted

    def _hashes(self, labels: Tensor) -> list[int]:
        """What the sample of each row is recognised by."""
        if self._inputs is None:
            raise UserError(
                f"{self.loss.kind} remembers every sample, which it knows by prompt and answer: "
                "add MemFTCallback(loss) to the trainer's callbacks, or call it with input_ids="
            )

        input_ids, attention_mask = self._inputs
        if input_ids.shape != labels.shape:
            shapes = f"{tuple(input_ids.shape)} and {tuple(labels.shape)}"
            raise UserError(f"{self.loss.kind}: input ids and labels differ in shape, {shapes}")
        return sample_hashes(input_ids, labels, attention_mask)

    def _normalise(self, weighted: Weighted, *, counted_by_trainer: bool) -> Tensor:
        """The micro-batch's part of the loss; the gradient accumulated so far is rescaled to it.

        Let V = sum_t w_t v_t and W = sum_t w_t + eps, over the step with this micro-batch, and V'
        and W' the same without it. The loss of the step so far is V / W. Its gradient is

            G = (W' / W) G' + grad(sum_t w_t v_t over the micro-batch) / W,

        where G' is what `parameter.grad` holds. The first term is formed in place, the second is
        the gradient of the scalar that is returned. Its value is V / W - V' / W': Trainer adds up
        the values of a step for its log, and the sum of these is the loss of the step.
        """
        previous_sums, sums = self._add_to_step_sums(weighted)
        is_plain_mean = self._is_plain_mean(sums)
        numerator, divisor = _numerator_and_divisor(sums, is_plain_mean)
        divisor = divisor + EPS

        # With the first token that has weight, W' becomes 0: what the plain mean had accumulated
        # is taken back. So there is no eps where it is 0.
        _, previous_divisor = _numerator_and_divisor(previous_sums, is_plain_mean)
        previous_divisor = previous_divisor + EPS * (previous_divisor > 0)
        previous_share = previous_divisor / divisor
        self._rescale_gradients(previous_share)

        mean = numerator / divisor
        increase: Tensor = mean - self._mean
        self._mean = mean

        weight = torch.where(is_plain_mean, torch.ones_like(weighted.weight), weighted.weight)
        # The weighted sum of the micro-batch alone: its value is no part of the result.
        gradient_only = _gradient_only((weight * weighted.value).sum() / divisor)
        gradient_only = gradient_only + self._penalty_gradient(1 - previous_share)

        if self._averaged and counted_by_trainer:
            # Trainer multiplies by the number of devices, before the mean over them.
            return gradient_only + increase / device_count()
        # The mean over the devices' gradients divides by their number.
        return gradient_only * device_count() + increase

    def _add_to_step_sums(self, weighted: Weighted) -> tuple[Tensor, Tensor]:
        """Sums of the step without and with this micro-batch, as of `_numerators_and_divisors`."""
        batch_sums = _numerators_and_divisors(weighted)
        if device_count() > 1:
            distributed.all_reduce(batch_sums)

        previous_sums = torch.zeros_like(batch_sums) if self._sums is None else self._sums
        self._sums = previous_sums + batch_sums
        return previous_sums, self._sums

    def _is_plain_mean(self, sums: Tensor) -> Tensor:
        """Whether all tokens count equally, as none of the step has had weight so far; ()."""
        if not self.loss.mean_if_unweighted:
            return torch.zeros((), dtype=torch.bool, device=sums.device)
        sum_of_weights = sums[0, 1]
        return sum_of_weights == 0

    def _penalty_gradient(self, share: Tensor) -> Tensor | float:
        """0, with the gradient of a share of the penalty.

        Whatever the earlier micro-batches of the step have left of it, the share makes it whole.
        """
        if not self.loss.keeps:
            return 0.0
        if self._penalty is None:
            raise UserError("loss.keep: add MemFTCallback(loss) to the trainer's callbacks")
        weight = self._penalty.weight.to(share.device)
        energy = self._penalty.energy().to(share.device)
        # Every device adds all of it.
        return _gradient_only(energy) * (weight * share / device_count())

    def _rescale_gradients(self, factor: Tensor) -> None:
        for parameter in self._parameters or []:
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad.dtype))

    def _count_for_log(self, scores: TokenScores) -> None:
        """Count tokens, and those with p > 0.5; no wait for the device."""
        above = (scores.nll.detach() < LN2).sum()
        tokens = torch.full_like(above, len(scores.nll))
        self._logged_counts.append(torch.stack([tokens, above]))


def _logits_of(outputs: Any) -> Tensor:
    """The logits of a model's outputs.

    Raises:
        UserError: they have none.
    """
    named = outputs.get("logits") if isinstance(outputs, Mapping) else None
    logits = getattr(outputs, "logits", named)
    if not isinstance(logits, Tensor):
        raise UserError(f"outputs: {type(outputs).__name__} has no logits")
    return logits


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    """Refuse labels of another shape than the logits, or outside of their vocabulary.

    Raises:
        UserError: names both shapes, or the id.
    """
    if not isinstance(labels, Tensor) or labels.dtype not in ID_TYPES:
        raise UserError("labels: must be a tensor of token ids, int64 or int32")
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise UserError(
            f"labels {tuple(labels.shape)} for logits {tuple(logits.shape)}: "
            "must be (B, T) and (B, T, V)"
        )
    if labels.device.type != "cpu":
        return

    words = logits.shape[2]
    # The first one is never scored.
    scored = labels[:, 1:]
    wrong = scored[(scored != IGNORED) & ((scored < 0) | (scored >= words))]
    if len(wrong):
        raise UserError(
            f"a label of {int(wrong[0])}: must be {IGNORED}, or an id below {words}, the size of "
            "the vocabulary"
        )


def _numerators_and_divisors(weighted: Weighted) -> Tensor:
    """(2, 2): numerator and divisor of the mean, under the weights and with all weights 1."""
    value = weighted.value.detach()
    weight = weighted.weight
    under_weights = torch.stack([(weight * value).sum(), weight.sum()])
    plain = torch.stack([value.sum(), torch.ones_like(value).sum()])
    return torch.stack([under_weights, plain])


def _numerator_and_divisor(sums: Tensor, is_plain_mean: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the mean that is minimised, () each, out of `_numerators_and_divisors`."""
    under_weights, plain = sums
    numerator, divisor = torch.where(is_plain_mean, plain, under_weights)
    return numerator, divisor


def _gradient_only(scalar: Tensor) -> Tensor:
    """0, with the gradient of the scalar."""
    return scalar - scalar.detach()


def _model_shards(args: Any, model: Any) -> int:
    """Processes that share one copy of the model, or one sequence; 1 under data parallelism."""
    plan = getattr(args, "parallelism_config", None)
    shards = getattr(model, "tp_size", None) or 1
    for name in ("tp_size", "cp_size", "sp_size"):
        shards = max(shards, getattr(plan, name, None) or 1)
    return int(shards)


class MemFTCallback(TrainerCallback):  # type: ignore[misc]
    """Tells the loss how far the training is and which prompts its labels belong to.

    It also adds counts of tokens to the trainer's log.
    """

    def __init__(self, loss: MemFTLoss) -> None:
        """
        Args:
            loss: that of the trainer's compute_loss_func.

        Raises:
            UserError: it is something else.
        """
        if not isinstance(loss, MemFTLoss):
            raise UserError(f"loss: must be a MemFTLoss, not {type(loss).__name__}")
        self.loss = loss
        self._hook: RemovableHandle | None = None

    # The signatures are those of transformers; what a method does not use is in `_`.

    def on_train_begin(
        self, args: Any, *_: Any, model: Any = None, processing_class: Any = None, **__: Any
    ) -> None:
        # Refused before the first step: each of these would train on other gradients, silently.
        accumulates = args.gradient_accumulation_steps > 1
        if args.n_gpu > 1:
            raise UserError(
                "several GPUs in one process (DataParallel): start one process a GPU, with torchrun"
            )
        if accumulates and (args.deepspeed or args.fsdp):
            raise UserError(
                "gradient accumulation with DeepSpeed or FSDP: "
                "the loss cannot rescale sharded gradients"
            )

        if args.label_smoothing_factor:
            raise UserError(
                f"label_smoothing_factor={args.label_smoothing_factor}: with a loss of one's own "
                "the Trainer smooths nothing; leave it at 0"
            )
        if _model_shards(args, model) > 1:
            raise UserError(
                "tensor, context or sequence parallelism: the loss would count a token once a part"
            )

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.loss.begin_training(trained, averaged=args.average_tokens_across_devices)
        if self.loss.loss.keeps:
            self._check_whole(args)
            self.loss.begin_keeping(model, processing_class, args.seed)
        self._remove_hook()
        if self.loss.remembers_samples:
            self._hook = model.register_forward_pre_hook(self._pass_inputs, with_kwargs=True)

    @staticmethod
    def _check_whole(args: Any) -> None:
        if args.deepspeed or args.fsdp:
            raise UserError("loss.keep with DeepSpeed or FSDP: it needs whole LoRA matrices")

    def _pass_inputs(self, _: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """A forward pre-hook of the model."""
        input_ids = inputs.get("input_ids", args[0] if args else None)
        if input_ids is not None:
            self.loss.begin_forward(input_ids, inputs.get("attention_mask"))

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        progress = state.global_step / max(state.max_steps, 1)
        self.loss.begin_step(progress, state.global_step)

    def on_log(
        self,
        args: Any,
        state: Any,
        *_: Any,
        logs: dict[str, float] | None = None,
        **__: Any,
    ) -> None:
        # Logs of an evaluation, and the summary at the end, have no `loss`.
        if logs is None or "loss" not in logs:
            return

        counts = self.loss.take_log()
        logs.update(counts)
        # Trainer has copied the logs into its history before this call.
        state.log_history[-1].update(counts)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._remove_hook()
        self.loss.end_training()

    def _remove_hook(self) -> None:
        # A training that ended with an error leaves its hook.
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _loss_from(loss: str | Loss, settings: Mapping[str, Any]) -> TokenLoss:
    """A loss by the name of its option, with other settings, or as it is."""
    if isinstance(loss, Loss):
        if settings:
            raise UserError(
                f"loss.{next(iter(settings))}: is for a loss given by name; set it in the instance"
            )
        return as_token_loss(loss)
    if not isinstance(loss, str):
        raise UserError(f"loss: must be the name of a loss or its settings, not {loss!r:.80}")

    # The YAML file of the option, with the checks that `pml` itself makes.
    option = option_settings("loss", loss)
    owner = type(option)
    for name, value in settings.items():
        if name not in keys(owner):
            own_names = [key for key in keys(owner) if key not in keys(Loss)]
            allowed = ", ".join([*own_names, *keys(Loss)])
            raise UserError(f"loss.{name}: no such setting of {loss}; allowed: {allowed}")
        expected, _ = annotation(owner, name)
        if not _is_of(value, expected):
            raise UserError(f"loss.{name}={value!r}: must be {type_text(owner, name)}")
    return as_token_loss(dataclasses.replace(option, **settings))


def _is_of(value: Any, expected: type[Any]) -> bool:
    """Whether a value is of a type; numpy's numbers are numbers too, and a bool is none."""
    if expected in (int, float):
        kind = Integral if expected is int else Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, expected)


def _accumulates(items: Tensor | int, labels: Tensor) -> bool:
    """Whether a step has more tokens than this batch of all devices; waits for the device."""
    count = (labels != IGNORED).sum()
    if device_count() > 1:
        distributed.all_reduce(count)
    return float(items) > float(count)
