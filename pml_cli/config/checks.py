"""What settings must be like. Each fault that shows without loading anything is a line: option, value, what is allowed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pml_cli.config.schema import (
    DEVICE,
    DEVICES_ALLOWED,
    DTYPES,
    NAME,
    SCHEDULES,
    Adapter,
    Data,
    Fit,
    HfData,
    InlineLaunch,
    JsonlData,
    Lasting,
    Launch,
    LinearAdapter,
    LocalLaunch,
    Loss,
    MemftMarginLoss,
    MemftOtLoss,
    MemftSwLoss,
    MixedData,
    Model,
    PhonebookData,
    Predict,
    Report,
    RuleData,
    Run,
    SlurmLaunch,
    TextData,
    Train,
    Transition,
)
from pml_cli.config.setting import faults as declared_faults

Check = tuple[str, Any, bool, str]  # the option, its value, whether that is allowed, what is


def problems(run: Run) -> list[str]:
    """The faults of one run."""
    seeds = "from 0 to 2^62"
    checks: list[Check] = [
        ("rank", run.rank, run.rank >= 1, "at least 1"),
        ("seqlen", run.seqlen, run.seqlen >= 1, "at least 1"),
        ("seed", run.seed, 0 <= run.seed < 2**62, seeds),
        ("data.seed", run.data.seed, 0 <= run.data.seed < 2**62, seeds),
        *_model(run.model),
        *_adapter(run.adapter),
        *_train(run.train),
        *_data(run.data),
        *_loss(run.loss),
    ]
    declared = [
        line
        for group in ("model", "adapter", "train", "data", "loss")
        for line in declared_faults(getattr(run, group), f"{group}.")
    ]
    return [*_faults(checks), *declared, *_missing_file(run.data)]


def launch_problems(launch: Launch) -> list[str]:
    """The faults of the launch settings."""
    checks: list[Check] = [
        ("launch.pack_tokens", launch.pack_tokens, launch.pack_tokens >= 0, "at least 0"),
        (
            "launch.device_gb",
            launch.device_gb,
            0 <= launch.device_gb < math.inf,
            "at least 0 and finite",
        ),
        (
            "launch.checkpoint_minutes",
            launch.checkpoint_minutes,
            launch.checkpoint_minutes >= 0,
            "at least 0",
        ),
        ("launch.stale_seconds", launch.stale_seconds, launch.stale_seconds >= 5, "at least 5"),
    ]
    if isinstance(launch, LocalLaunch):
        checks.append(("launch.devices", launch.devices, launch.devices >= 0, "at least 0"))
        checks.append(("launch.threads", launch.threads, launch.threads >= 0, "at least 0"))
    if isinstance(launch, SlurmLaunch):
        checks.extend(_slurm(launch))
    return [*_faults(checks), *declared_faults(launch, "launch.")]


def device_problems(runs: Sequence[Run], launch: Launch) -> list[str]:
    """A GPU by number where every process is given one of its own and sees no other."""
    if isinstance(launch, InlineLaunch):
        return []
    named = dict.fromkeys(run.model.device for run in runs if ":" in run.model.device)
    return [
        f"model.device={device}: must be auto, cpu or cuda with launch={launch.kind}"
        for device in named
    ]


def report_problems(asked: Report) -> list[str]:
    """The faults of the settings of a verb that trains nothing."""
    checks: list[Check] = []
    if isinstance(asked, Fit | Transition):
        checks.append(("draws", asked.draws, asked.draws >= 0, "at least 0"))
    if isinstance(asked, Predict | Transition):
        for name, values in (("rank", asked.rank), ("seqlen", asked.seqlen)):
            checks += [
                (name, f"{value:g}", 1 <= value < math.inf, "at least 1 and finite")
                for value in values
            ]
    if isinstance(asked, Fit):
        finite = 0 <= asked.saturated_below < math.inf  # nan is not
        checks.append(("saturated_below", asked.saturated_below, finite, "at least 0 and finite"))
        checks.append(("x", asked.x, asked.x in ("rank", "parameters"), "rank or parameters"))
    if isinstance(asked, Predict):
        checks.append(
            (
                "base",
                asked.base,
                asked.base is None or 0 < asked.base < math.inf,
                "above 0 and finite",
            )
        )
    if isinstance(asked, Lasting):
        checks.append(
            ("tokens", asked.tokens, asked.tokens >= 0, "at least 0 (0: no damage is measured)")
        )
        checks.append(
            ("device", asked.device, bool(DEVICE.fullmatch(asked.device)), DEVICES_ALLOWED)
        )
    faults = _faults(checks)
    if isinstance(asked, Lasting):
        faults += (
            [f"text={asked.text}: no such file"]
            if asked.text and not Path(asked.text).is_file()
            else []
        )
    return faults


def _faults(checks: list[Check]) -> list[str]:
    return [
        f"{name}={value}: must be {allowed}" for name, value, good, allowed in checks if not good
    ]


def _model(model: Model) -> Iterator[Check]:
    in_files = not (model.stream and model.weights == "random")
    yield (
        "model.name",
        model.name,
        bool(NAME.fullmatch(model.name)),
        "letters, digits, '.', '_' and '-'",
    )
    yield "model.path", model.path, bool(model.path), "tiny, a hub id or a folder"
    yield "model.dtype", model.dtype, model.dtype in DTYPES, f"one of {', '.join(DTYPES)}"
    yield "model.device", model.device, bool(DEVICE.fullmatch(model.device)), DEVICES_ALLOWED
    yield (
        "model.weights",
        model.weights,
        model.weights in ("pretrained", "random"),
        "pretrained or random",
    )
    yield (
        "model.stream",
        model.stream,
        in_files,
        "null or false with random weights, which lie in no file",
    )
    yield "model.layer", model.layer, model.layer is None or model.layer >= 0, "null or at least 0"


def _adapter(adapter: Adapter) -> Iterator[Check]:
    yield "adapter.dropout", adapter.dropout, 0 <= adapter.dropout < 1, "at least 0 and below 1"
    if isinstance(adapter, LinearAdapter):
        yield "adapter.targets", adapter.targets, bool(adapter.targets), "at least one module name"
        yield "adapter.alpha", adapter.alpha, adapter.alpha > 0, "above 0"


def _train(train: Train) -> Iterator[Check]:
    yield "train.steps", train.steps, train.steps >= 1, "at least 1"
    yield (
        "train.epochs",
        train.epochs,
        train.epochs is None or train.epochs >= 1,
        "null or at least 1",
    )
    yield "train.batch", train.batch, train.batch >= 0, "at least 0 (0: all samples)"
    yield (
        "train.curriculum",
        train.curriculum,
        _rising(train.curriculum),
        "rising epochs, each at least 1",
    )
    yield "train.lr", train.lr, 0 < train.lr < math.inf, "above 0"
    yield (
        "train.schedule",
        train.schedule,
        train.schedule in SCHEDULES,
        f"one of {', '.join(SCHEDULES)}",
    )
    yield "train.weight_decay", train.weight_decay, train.weight_decay >= 0, "at least 0"
    yield "train.clip", train.clip, train.clip >= 0, "at least 0 (0: off)"
    yield "train.log_every", train.log_every, train.log_every >= 0, "at least 0 (0: twenty a run)"
    yield "train.stop", train.stop, train.stop in ("none", "recalled"), "none or recalled"
    yield (
        "train.stop_margin",
        train.stop_margin,
        math.isfinite(train.stop_margin),
        "finite (logits)",
    )
    if train.epochs is not None and train.curriculum:
        late = train.curriculum[-1] < train.epochs
        yield "train.curriculum", train.curriculum, late, f"below train.epochs ({train.epochs})"


def _rising(epochs: list[int]) -> bool:
    return all(epoch >= 1 for epoch in epochs) and all(a < b for a, b in itertools.pairwise(epochs))


def _data(data: Data) -> Iterator[Check]:
    if isinstance(data, MixedData):
        yield "data.random_share", data.random_share, 0 <= data.random_share <= 1, "from 0 to 1"
    if isinstance(data, PhonebookData):
        yield "data.digits", data.digits, 1 <= data.digits <= 18, "from 1 to 18"
    if isinstance(data, RuleData):
        yield "data.maximum", data.maximum, 1 <= data.maximum <= 2000, "from 1 to 2000"
        yield "data.test_samples", data.test_samples, data.test_samples >= 0, "at least 0"
    if isinstance(data, JsonlData | HfData):
        yield "data.path", data.path, bool(data.path), f"given with data={data.source}"


def _missing_file(data: Data) -> list[str]:
    if isinstance(data, TextData | JsonlData) and data.path and not Path(data.path).is_file():
        return [f"data.path={data.path}: no such file"]
    return []


def _loss(loss: Loss) -> Iterator[Check]:
    if isinstance(loss, MemftOtLoss | MemftSwLoss):
        yield "loss.threshold", loss.threshold, 0 < loss.threshold < math.inf, "above 0 (nats)"
    if isinstance(loss, MemftOtLoss):
        yield "loss.when_done", loss.when_done, loss.when_done in ("mean", "zero"), "mean or zero"
    if isinstance(loss, MemftSwLoss):
        yield "loss.kappa", loss.kappa, 0 < loss.kappa < math.inf, "above 0 (per nat)"
        yield "loss.tau", loss.tau, 0 < loss.tau < math.inf, "above 0 (tokens)"
        yield "loss.window", loss.window, loss.window >= 1, "at least 1 (tokens)"
        yield "loss.floor", loss.floor, 0 <= loss.floor <= 1, "from 0 to 1"
        yield "loss.patience", loss.patience, loss.patience >= 1, "at least 1 (steps)"
    if isinstance(loss, MemftMarginLoss):
        can_grow = 0 < loss.margin < math.inf or (loss.margin == 0 and loss.growth == 1)
        yield "loss.margin", loss.margin, can_grow, "above 0 (logits), or 0 with loss.growth=1"
        yield (
            "loss.growth",
            loss.growth,
            1 <= loss.growth < math.inf,
            "at least 1 (1: the aim stays)",
        )
        yield "loss.switch", loss.switch, 0 <= loss.switch <= 1, "from 0 to 1"


def _slurm(launch: SlurmLaunch) -> Iterator[Check]:
    for name in ("devices", "time", "cpus", "signal_seconds"):
        yield f"launch.{name}", getattr(launch, name), getattr(launch, name) >= 1, "at least 1"
    yield "launch.parallel", launch.parallel, launch.parallel >= 0, "at least 0"
    yield "launch.gpus", launch.gpus, launch.gpus >= 0, "at least 0"
    memory = launch.mem_gb is None or 0 < launch.mem_gb < math.inf
    yield "launch.mem_gb", launch.mem_gb, memory, "above 0 and finite"
    early = launch.signal_seconds < 60 * launch.time
    yield (
        "launch.signal_seconds",
        launch.signal_seconds,
        early,
        f"below the time limit ({launch.time} min)",
    )
