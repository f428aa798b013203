"""What one run is: typed settings, each declared once with `setting`.

The settings of a loss, a data source or a launcher lie in its own file (`registry.py`). YAML files
and the command line only override (`request.py`). A loaded config is never assigned to.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pml_cli.config import registry
from pml_cli.config.registry import register
from pml_cli.config.setting import Settings, setting, value_text

# Format of run folders and of run ids; a folder of another format is refused.
FORMAT = 1

# Folder of the embedded model.
TINY = Path(__file__).parents[1] / "tiny"

# As a user may ask for it; pml itself also builds models on torch's `meta` device.
DEVICE_PATTERN = r"auto|cpu|cuda(:\d+)?"
DEVICES_ALLOWED = "auto, cpu, cuda or cuda:N"

DTYPES = ("float64", "float32", "bfloat16", "float16")
SCHEDULES = ("linear", "constant", "cosine")
# Peak learning rates where train.lr is null; of L-BFGS the first trial step, as in torch.
LEARNING_RATES = {"adamw": 1e-2, "muon": 1.0, "lbfgs": 1.0}
KEEP_BY = ("energy", "kl")

# Settings of a loss that count, also for the run id, only where it keeps anything.
ONLY_OF_PENALTIES = ("keep_by", "keep_text")

# `seqlen=all`, until it is resolved to the number of target tokens (`data/resolve.py`).
ALL_TOKENS = -(2**62)
# A template that writes today's date would give other tokens, and another run, every day.
TEMPLATE_DATE = "2025-01-01"

# Every step has its rate in a table.
MOST_STEPS = 10_000_000

# Above the width of any model.
MOST_RANK = 1_000_000

# Not every random generator takes more bits.
SEED_LIMIT = 2**62
SEEDS_ALLOWED = "from 0 to 2^62 - 1"


@register("model")
@dataclass(kw_only=True)
class Model(Settings):
    """The frozen base model."""

    name: str = setting(
        "tiny",
        help="label in run ids and tables",
        # It becomes part of a folder's name, which file systems limit to 255 bytes.
        pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}",
        allowed="letters, digits, '.', '_' and '-', at most 150",
    )
    path: str = setting(
        "tiny",
        help="tiny (embedded), a Hugging Face hub id, a local folder or a GGUF file",
        required=True,
        allowed="tiny, a hub id, a folder or a GGUF file",
        path="any",
    )
    weights: str = setting(
        "pretrained",
        help="random: seeded random weights of the same architecture, to measure speed",
        choices=("pretrained", "random"),
    )
    architecture: dict[str, Any] = setting(
        {}, help="fields of config.json for weights=random, which then needs no download"
    )
    layer: int | None = setting(
        None,
        help="decoder layer that carries the adapter, from 0",
        minimum=0,
        special={None: "two thirds of the depth"},
    )
    dtype: str = setting("float32", help="dtype of the base model's weights", choices=DTYPES)
    device: str = setting(
        "auto",
        help="cpu, cuda or cuda:N",
        pattern=DEVICE_PATTERN,
        allowed=DEVICES_ALLOWED,
        special={"auto": "cuda where there is one, else cpu"},
        suggestions=("auto", "cpu", "cuda"),
    )
    stream: bool | None = setting(
        None,
        help="read the layers below the adapter from their files, one at a time",
        special={None: "where the weights do not fit the device"},
    )
    checkpointing: bool | None = setting(
        None,
        help="activation checkpointing in the layers above the adapter",
        special={None: "where a cell does not fit the device without"},
    )
    compile: bool = setting(
        False,
        help="torch.compile for the layers above the adapter: pays with large models on a GPU",
    )
    revision: str | None = setting(None, help="revision of the hub repository")
    trust_remote_code: bool = setting(False, help="run model code from the hub repository")

    def validate(self) -> Iterator[str]:
        if self.stream and self.weights == "random":
            yield "stream=true: must be null or false with random weights, which lie in no file"

    def unread(self) -> dict[str, str]:
        if self.weights == "random":
            return {}
        return {"architecture": "only read with model.weights=random"}


@dataclass(kw_only=True)
class Data(Settings):
    """Common to all sources.

    A request is always for `seqlen` target tokens; lengths are prefixes of one sequence.
    """

    source: str = ""
    seed: int = setting(
        0,
        help="which sequence to draw from the source",
        minimum=0,
        below=SEED_LIMIT,
        allowed=SEEDS_ALLOWED,
    )
    chat: bool = setting(False, help="put the prompt through the tokenizer's chat template")
    system: str | None = setting(
        None,
        help="system turn of the chat template",
        special={None: "that of the data, else the template's own"},
        # Before this setting existed, the system turn was empty.
        absent="",
    )
    thinking: bool | None = setting(
        None,
        help="enable the thinking mode of the chat template",
        special={None: "as the template does by itself"},
    )
    date: str = setting(
        TEMPLATE_DATE,
        help="date for chat templates that insert today's date",
        pattern=r"\d{4}-\d\d-\d\d",
        allowed="a date: 2025-12-31",
    )

    @property
    def label(self) -> str:
        """The source in tables and figures, with the name of its file where it has one."""
        path = getattr(self, "path", None)
        return f"{self.source}:{Path(path).stem}" if path else self.source

    def id_fields(self) -> dict[str, Any]:
        """Values that count for the run id beside the settings that differ from their defaults.

        A changed `path` always counts by the content of its file.
        """
        return {}

    def open(self, model: Model) -> Any:
        """Open the source for the vocabulary of a model.

        Returns:
            A `pml_cli.data.source.Source`.

        Raises:
            UserError: a file that is missing or malformed, or a model without a tokenizer.
        """
        raise NotImplementedError

    def overlapping(self) -> list[Data]:
        """Other sources whose tokens a target of this one contains in part."""
        return []

    def resolved(self, model: Model) -> Data:
        """The same with what automatic values are for a model (`data/resolve.py`).

        Must not read the model where nothing is automatic: runs are read back without it.
        """
        return self

    def validate(self) -> Iterator[str]:
        if not _is_date(self.date):
            yield f"date={self.date}: must be a date of the calendar: 2025-12-31"
        if self.chat:
            return

        needs = "needs data.chat=true, being for the chat template"
        if self.system:
            yield f"system={value_text(self.system)}: {needs}"
        if self.thinking is not None:
            yield f"thinking={value_text(self.thinking)}: {needs}"
        if self.date != TEMPLATE_DATE:
            yield f"date={self.date}: {needs}"


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


@dataclass(kw_only=True)
class FactsData(Data):
    """Common to the sources of facts: many prompts, each with a target of its own that ends."""

    end: str = setting(
        "auto",
        help="text that ends every target and is scored",
        special={
            "auto": "end of the chat template's turn, without chat end-of-text",
            "none": "nothing",
        },
        required=True,
        allowed="auto, none or a text such as '<|im_end|>'",
        suggestions=("auto", "none"),
        absent="none",
    )
    separator: str | None = setting(
        None,
        help=r"text between prompt and target without a chat template, \n a line feed",
        special={None: "by the source"},
        absent="",
    )
    begin: bool | None = setting(
        None,
        help="begin-of-text in front of the prompt, without a chat template",
        special={None: "where the tokenizer puts it by itself"},
        absent=True,
    )
    samples: int | None = setting(
        None,
        help="how many samples to learn, in place of seqlen",
        minimum=1,
        special={None: "as many as seqlen takes"},
    )

    def automatic_separator(self) -> str:
        """What `separator` is without a chat template, where it is null."""
        return ""

    def __post_init__(self) -> None:
        super().__post_init__()
        # A shell has no line feed: it is written as a backslash and n.
        self.end = self.end.replace(r"\n", "\n")
        if self.separator is not None:
            self.separator = self.separator.replace(r"\n", "\n")

    def validate(self) -> Iterator[str]:
        yield from super().validate()
        if not self.chat:
            return

        reason = "not with data.chat=true, where the chat template decides"
        if self.separator:
            yield f"separator={self.separator!r}: {reason}"
        if self.begin is False:
            yield f"begin=false: {reason}"


@dataclass(kw_only=True)
class Adapter(Settings):
    """Common to all placements of the adapter."""

    kind: str = ""
    dropout: float = setting(0.0, help="dropout on the adapter's input", minimum=0, below=1)


@register("adapter", "mlp_block")
@dataclass(kw_only=True)
class MlpBlockAdapter(Adapter):
    """The paper's placement: x @ A @ B in parallel to the whole MLP of one layer, scale 1."""

    kind: str = "mlp_block"


@register("adapter", "linear")
@dataclass(kw_only=True)
class LinearAdapter(Adapter):
    """Standard LoRA on linear modules, scale alpha / rank, as in PEFT."""

    kind: str = "linear"
    targets: list[str] = setting(
        ["gate_proj", "up_proj", "down_proj"],
        help="names of the modules that get an adapter",
        required=True,
        allowed="at least one module name",
    )
    layers: list[int] | None = setting(
        None,
        help="decoder layers, from 0",
        special={None: "only the model's adapter layer", "[]": "every layer"},
    )
    alpha: float = setting(16.0, help="the scale is alpha / rank", above=0, finite=True)


@dataclass(kw_only=True)
class Loss(Settings):
    """Common to all losses; how one weighs its tokens: `pml_cli.training.losses`."""

    kind: str = ""
    keep: float = setting(
        0.0,
        help="weight of a penalty on what the adapter changes on other text; 1 to 100 is usual",
        minimum=0,
        finite=True,
        special={0: "none"},
    )
    keep_by: str = setting(
        "energy",
        help="what is penalised: the square of what the adapter adds, or KL(base || adapted)",
        choices=KEEP_BY,
    )
    keep_harm: float = setting(
        0.0,
        help="largest rise of the loss on other text: the weight adapts to it, from loss.keep on",
        unit="nats per token",
        minimum=0,
        finite=True,
        special={0: "no limit"},
    )
    keep_text: str | None = setting(
        None,
        help="UTF-8 file of the other text",
        path="existing file",
        special={None: "prose, documentation, code and dialogues that ship with pml"},
    )

    @property
    def is_steady(self) -> bool:
        """Whether what is minimised stays the same function of the weights all through."""
        return False

    @property
    def keeps(self) -> bool:
        """Whether anything holds the adapter down on other text."""
        return self.keep > 0 or self.keep_harm > 0

    def unread(self) -> dict[str, str]:
        if self.keeps:
            return {}
        reason = "only read with loss.keep or loss.keep_harm above 0"
        return dict.fromkeys(ONLY_OF_PENALTIES, reason)

    def id_fields(self) -> dict[str, Any]:
        """Settings that count for the run id also at their defaults."""
        return {}


@register("train")
@dataclass(kw_only=True)
class Train(Settings):
    """Optimiser and length of the training of the adapter alone; without warm-up.

    adamw: betas 0.9, 0.999; eps 1e-8. muon: momentum 0.95 with Nesterov, orthogonalised; one
    learning rate fits every model and rank. lbfgs: for loss=sft on all samples a step; after 20
    steps of Muon a line search for each cell, on whitened inputs.
    """

    optimizer: str = setting("adamw", help="optimiser", choices=tuple(LEARNING_RATES))
    steps: int = setting(
        500,
        help="optimiser steps; with lbfgs, forward-backward passes",
        minimum=1,
        maximum=MOST_STEPS,
        allowed=f"from 1 to {MOST_STEPS:,}",
    )
    epochs: int | None = setting(
        None,
        help="passes over the samples, in place of train.steps",
        minimum=1,
        special={None: "by steps"},
    )
    batch: int = setting(0, help="samples per step", minimum=0, special={0: "all samples"})
    curriculum: list[int] = setting(
        [],
        help="epochs at which more samples come into use, all within the steps; [20,40]: a third, "
        "two thirds, all",
    )
    lr: float | None = setting(
        None,
        help="peak learning rate",
        above=0,
        finite=True,
        special={None: "0.01 with adamw, 1 with muon; lbfgs has none to tune"},
        # What it was before there were others; so ids of AdamW's runs leave both out.
        absent=1e-2,
    )
    schedule: str = setting(
        "linear", help="decay of the learning rate to 0 over the steps", choices=SCHEDULES
    )
    weight_decay: float = setting(0.0, help="decoupled weight decay", minimum=0, finite=True)
    clip: float = setting(
        1.0, help="largest gradient norm of one cell", minimum=0, special={0: "no clipping"}
    )
    log_every: int = setting(
        0, help="steps between logged steps", minimum=0, special={0: "about twenty a run"}
    )
    stop: str = setting(
        "none",
        help="recalled: stop a cell once every target token wins by stop_margin; converged: once "
        "more training is expected to gain less than tolerance",
        choices=("none", "recalled", "converged"),
    )
    stop_margin: float = setting(
        1.0, help="logit margin that ends the training", unit="logits", finite=True
    )
    tolerance: float = setting(
        0.05,
        help="a cell has converged once four times its passes are expected to gain less than this",
        unit="nats per token",
        above=0,
        finite=True,
    )
    decode: bool = setting(True, help="after training, also decode greedily from the prompt")
    start: str | None = setting(
        None,
        help="adapter_model.safetensors to start from; same rank and modules",
        path="existing file",
        special={None: "untrained"},
    )

    @property
    def peak_lr(self) -> float:
        """`lr`, or what it is by itself."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    def validate(self) -> Iterator[str]:
        yield from self._optimizer_faults()
        increasing = all(a < b for a, b in itertools.pairwise(self.curriculum))
        if not increasing or any(epoch < 1 for epoch in self.curriculum):
            yield f"curriculum={self.curriculum}: must be increasing epochs, each at least 1"
        elif self.epochs and self.curriculum and self.curriculum[-1] >= self.epochs:
            yield f"curriculum={self.curriculum}: must be below train.epochs ({self.epochs})"

    def unread(self) -> dict[str, str]:
        reasons = {}
        if self.epochs is not None:
            reasons["steps"] = f"not read with train.epochs={self.epochs}, which says how long"
        if self.stop != "recalled":
            reasons["stop_margin"] = "only read with train.stop=recalled"
        if self.stop != "converged":
            reasons["tolerance"] = "only read with train.stop=converged"
        return reasons

    def _optimizer_faults(self) -> Iterator[str]:
        if self.optimizer == "lbfgs":
            if self.weight_decay:
                yield f"weight_decay={self.weight_decay:g}: must be 0 with train.optimizer=lbfgs"
            if self.lr is not None:
                yield f"lr={self.lr:g}: train.optimizer=lbfgs has none; leave it out or give null"
            if self.schedule != "linear":
                yield f"schedule={self.schedule}: train.optimizer=lbfgs has none; leave it out"
            if self.clip != 1:
                yield f"clip={self.clip:g}: train.optimizer=lbfgs does not clip; leave it out"
        elif self.stop == "converged":
            yield (
                f"stop=converged: needs train.optimizer=lbfgs, not {self.optimizer}: with a "
                "learning rate that decays to 0 every loss stops changing"
            )


@dataclass(kw_only=True)
class Launch(Settings):
    """Common to all launchers; each is a file of pml_cli/launch/executors.

    Attributes:
        assigns_devices: whether every process is given one GPU and sees no other, so that a run
            cannot name one by number.
        remote: whether the workers run on other machines than this one.
        waits: whether the command stays until the sweep has ended, without --wait or --no-wait.
    """

    assigns_devices: ClassVar[bool] = False
    remote: ClassVar[bool] = False
    waits: ClassVar[bool] = True

    kind: str = ""
    pack_tokens: int = setting(
        0,
        help="tokens of one training step, over all cells of a pack",
        minimum=0,
        special={0: "by device"},
    )
    device_gb: float = setting(
        0.0,
        help="memory of a device that packs may fill",
        unit="GiB",
        minimum=0,
        finite=True,
        special={0: "80 % of this machine's memory, on Slurm no limit"},
    )
    checkpoint_minutes: float = setting(
        3.0, help="time between checkpoints of a pack in training", unit="minutes", minimum=0
    )
    stale_seconds: float = setting(
        120.0,
        help="a process of another machine counts as dead once its last heartbeat is this old",
        unit="seconds",
        minimum=5,
        finite=True,
    )

    @property
    def uses_gpu(self) -> bool | None:
        """Whether model.device=auto is a GPU there; None: as on this machine."""
        return None

    def check_available(self) -> None:
        """Check that workers can be started from here.

        Raises:
            UserError: says what is missing.
        """

    def visible_devices(self, runs: Sequence[Run]) -> list[str | None]:
        """CUDA_VISIBLE_DEVICES of each worker; None leaves it as it is."""
        raise NotImplementedError

    def worker_threads(self, workers: int) -> int | None:
        """Threads of each of so many workers; None: as this process is set."""
        return None

    def executor(self, job: Any) -> Any:
        """The Executor that trains a SweepJob (pml_cli/launch/executors/base.py)."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Run(Settings):
    """One cell: one adapter of one rank, trained to remember `seqlen` target tokens."""

    rank: int = setting(
        8,
        help="rank of the adapter",
        minimum=1,
        maximum=MOST_RANK,
        allowed=f"from 1 to {MOST_RANK:,}",
    )
    seqlen: int = setting(
        128,
        help="target tokens to remember",
        minimum=1,
        special={"all": "all that the source has"},
        suggestions=("all",),
        words={"all": ALL_TOKENS},
    )
    seed: int = setting(
        0,
        help="seed of the adapter's initial weights, dropout and sample order",
        minimum=0,
        below=SEED_LIMIT,
        allowed=SEEDS_ALLOWED,
    )
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=partial(registry.create, "data", "random"))
    adapter: Adapter = field(default_factory=MlpBlockAdapter)
    loss: Loss = field(default_factory=partial(registry.create, "loss", "sft"))
    train: Train = field(default_factory=Train)

    def validate(self) -> Iterator[str]:
        if self.train.optimizer != "lbfgs":
            return
        # Losses that are no longer the same at the next trial mislead a line search.
        if not self.loss.is_steady or self.loss.keeps:
            name = f"{self.loss.kind} with loss.keep" if self.loss.keeps else self.loss.kind
            yield f"train.optimizer=lbfgs: needs loss=sft, not {name}; muon takes every loss"
        if self.adapter.dropout:
            yield "train.optimizer=lbfgs: needs adapter.dropout=0; muon takes any"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one command asks for.

    Attributes:
        runs: the cells, each once.
        out: folder of their results.
        launch: how they are launched.
        swept: the keys that were given several values.
    """

    runs: list[Run]
    out: Path
    launch: Launch
    swept: list[str]
