"""What one run is: typed settings (`checks.py`: what they must be like).

Each setting is declared once, here: name, type, default, meaning. YAML files and the command line only override
(`compose.py`). A loaded config is never assigned to.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pml_cli.config.registry import register
from pml_cli.config.setting import Settings, setting

__all__ = [
    "DEVICE",
    "DEVICES_ALLOWED",
    "DTYPES",
    "FORMAT",
    "NAME",
    "SCHEDULES",
    "TINY",
    "Adapter",
    "Data",
    "Fit",
    "HfData",
    "InlineLaunch",
    "JsonlData",
    "Lasting",
    "Launch",
    "LinearAdapter",
    "LocalLaunch",
    "Loss",
    "MemftMarginLoss",
    "MemftOtLoss",
    "MemftSwLoss",
    "MixedData",
    "MlpBlockAdapter",
    "Model",
    "PhonebookData",
    "Predict",
    "RandomData",
    "Report",
    "Request",
    "RuleData",
    "Run",
    "Settings",
    "SftLoss",
    "SlurmLaunch",
    "TextData",
    "Train",
    "Transition",
    "setting",
]

FORMAT = 1  # of run folders and of ids; a folder of another format is refused

TINY = Path(__file__).parents[1] / "tiny"  # the embedded model
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it becomes part of a folder's name
DEVICE = re.compile(
    r"auto|cpu|cuda(:\d+)?"
)  # as a user may ask for it; pml itself also has models on torch's `meta`
DEVICES_ALLOWED = "auto, cpu, cuda or cuda:N"
DTYPES = ("float64", "float32", "bfloat16", "float16")
SCHEDULES = ("linear", "constant", "cosine")


@register("model")
@dataclass
class Model(Settings):
    """The frozen base. `path` is `tiny` (embedded), a Hugging Face hub id or a local folder."""

    name: str = "tiny"  # label in run ids and tables
    path: str = "tiny"
    weights: str = "pretrained"  # or random: the architecture below (or of path), seeded; for measurements of speed
    architecture: dict[str, Any] = field(
        default_factory=dict
    )  # fields of config.json, for weights=random
    layer: int | None = (
        None  # the decoder layer that carries the adapter, 0-based; null: two thirds of the depth
    )
    dtype: str = "float32"
    device: str = "auto"  # auto: cuda where there is one, else cpu; cuda:N
    stream: bool | None = (
        None  # read the layers below the adapter one at a time; null: where the weights do not fit
    )
    checkpointing: bool | None = (
        None  # run the layers above the adapter twice and keep less; null: where one cell needs it
    )
    revision: str | None = None  # of the hub repository
    trust_remote_code: bool = False


@dataclass
class Data(Settings):
    """Common to all sources. What is asked for is always `seqlen` target tokens; lengths are prefixes of one sequence."""

    source: str = ""
    seed: int = 0  # which sequence to draw from the source
    chat: bool = (
        False  # put the prompt through the tokenizer's chat template, with an empty system prompt
    )


@register("data", "random")
@dataclass
class RandomData(Data):
    """Uniform random tokens of the vocabulary (special tokens left out)."""

    source: str = "random"
    prompt: str = ""  # text before the target; without one, only the begin-of-text token


@register("data", "text")
@dataclass
class TextData(Data):
    """Running text: a UTF-8 file, or the documentation inside Python that the tiny model has not seen."""

    source: str = "text"
    path: str | None = None
    prompt: str = ""


@register("data", "mixed")
@dataclass
class MixedData(TextData):
    """Running text in which a share of the tokens is replaced by uniform random ones."""

    source: str = "mixed"
    random_share: float = 0.4


@register("data", "phonebook")
@dataclass
class PhonebookData(Data):
    """Generated names and ten-digit numbers, one sample an entry."""

    source: str = "phonebook"
    digits: int = 10


@register("data", "rule")
@dataclass
class RuleData(Data):
    """f(x, y) = 3x + 5y + 7: samples to learn, and unseen pairs that test whether the rule was found."""

    source: str = "rule"
    maximum: int = 99  # x and y are drawn from 0..maximum
    test_samples: int = 200


@register("data", "jsonl")
@dataclass
class JsonlData(Data):
    """A JSON-lines file with the fields question/matching (long texts) or query/target (short facts)."""

    source: str = "jsonl"
    path: str = ""


@register("data", "hf")
@dataclass
class HfData(Data):
    """A text column of a Hugging Face dataset (needs `pip install pml-cli[hf]`)."""

    source: str = "hf"
    path: str = ""  # hub id or local folder
    name: str | None = None  # configuration of the dataset
    split: str = "train"
    column: str = "text"
    prompt: str = ""


@dataclass
class Adapter(Settings):
    kind: str = ""
    dropout: float = 0.0


@register("adapter", "mlp_block")
@dataclass
class MlpBlockAdapter(Adapter):
    """The paper's placement: x @ A @ B in parallel to the whole MLP of one layer, scale 1."""

    kind: str = "mlp_block"


@register("adapter", "linear")
@dataclass
class LinearAdapter(Adapter):
    """Standard LoRA on linear modules, scale alpha / rank, as in PEFT."""

    kind: str = "linear"
    targets: list[str] = field(
        default_factory=lambda: ["gate_proj", "up_proj", "down_proj"]
    )  # module names
    layers: list[int] | None = None  # null: only the model's adapter layer; []: every layer
    alpha: float = 16.0


@dataclass
class Loss(Settings):
    kind: str = ""


@register("loss", "sft")
@dataclass
class SftLoss(Loss):
    """Mean cross-entropy over the target tokens."""

    kind: str = "sft"


@register("loss", "memft_ot")
@dataclass
class MemftOtLoss(Loss):
    """MemFT, only-threshold: cross-entropy over the tokens whose nll is still above the threshold."""

    kind: str = "memft_ot"
    threshold: float = math.log(2)  # nats; ln 2 is p = 0.5
    when_done: str = (
        "mean"  # when no token is above it: mean (plain loss, as released) or zero (no update)
    )


@register("loss", "memft_sw")
@dataclass
class MemftSwLoss(Loss):
    """MemFT, spatial window: weights rise smoothly around the threshold, and reach a window beyond a sample's first error.

    Where a sample's first error has stayed for `patience` of its steps, the window grows by half of itself a step, up to
    four times; it is reset when that error moves. Defaults: the paper's; loss=memft_sw_axolotl: Axolotl's.
    """

    kind: str = "memft_sw"
    threshold: float = math.log(2)  # nats
    kappa: float = 10.0  # steepness of the sigmoid around the threshold, per nat
    tau: float = 20.0  # tokens beyond the first error after which the weight has fallen to 1/e
    window: int = 50  # tokens from the first error on
    floor: float = 0.01  # factor beyond the window
    patience: int = 3  # steps that the first error may stay where it is


@register("loss", "memft_margin")
@dataclass
class MemftMarginLoss(Loss):
    """Ours: cross-entropy where the logit margin falls short of an aim, later the shortfall itself (a hinge).

    Both are means over the tokens that fall short. The aim is `margin` until every token of the cell seen so far, when last
    seen, wins by it; then it is the next of margin x growth, margin x growth^2, ... that some token still falls short
    of. So what capacity is left makes recall safer. For many short facts switch=1 is better (loss=memft_margin_facts): the
    hinge presses one rival of a token, another sample brings up the next. With growth=1 margins settle at `margin`:
    train.stop=recalled then needs a train.stop_margin below it.
    """

    kind: str = "memft_margin"
    margin: float = 0.1  # logits by which the target must win; recall is exactly a margin above 0
    growth: float = (
        1.5  # how many times as much is aimed at once every token wins; 1: no more than `margin`
    )
    switch: float = (
        0.5  # share of the steps after which the hinge takes over; 1: never, 0: from the start
    )


@register("train")
@dataclass
class Train(Settings):
    """AdamW (betas 0.9, 0.999; eps 1e-8) on the adapter alone, no warm-up."""

    steps: int = 500
    epochs: int | None = None  # overrides steps: passes over the samples
    batch: int = 0  # samples a step; 0: all of them
    curriculum: list[int] = field(
        default_factory=list
    )  # epochs at which more samples come into use; [20,40]: 1/3, 2/3, all
    lr: float = 1e-2
    schedule: str = "linear"  # decay to 0 over the steps: linear | constant | cosine
    weight_decay: float = 0.0
    clip: float = 1.0  # largest gradient norm of one cell; 0: no clipping
    log_every: int = 0  # steps between logged steps; 0: about twenty logged steps a run
    stop: str = "none"  # none | recalled: stop a cell once every target token wins by stop_margin
    stop_margin: float = 1.0  # logits
    decode: bool = True  # after training, also decode freely (greedy) from the prompt


@dataclass
class Launch(Settings):
    kind: str = ""
    pack_tokens: int = 0  # tokens in one training step over all cells of a pack; 0: by device
    device_gb: float = 0.0  # memory of one device that packs may fill; 0: 80 % of this machine's (Slurm: not looked at)
    checkpoint_minutes: float = 3.0  # between checkpoints of a pack in training
    stale_seconds: float = (
        120.0  # a process of another machine without a sign of life for so long is taken for dead
    )


@register("launch", "inline")
@dataclass
class InlineLaunch(Launch):
    """In this process."""

    kind: str = "inline"


@register("launch", "local")
@dataclass
class LocalLaunch(Launch):
    """Processes on this machine, each with a device of its own."""

    kind: str = "local"
    devices: int = 0  # how many; 0: one for each GPU, without a GPU one for each two cores
    threads: int = 0  # of each process; 0: the cores shared out


@register("launch", "slurm")
@dataclass
class SlurmLaunch(Launch):
    """An array of jobs on a Slurm cluster, each with a device of its own. null leaves a setting to the site."""

    kind: str = "slurm"
    devices: int = 4  # tasks of the array
    parallel: int = 0  # tasks that may run at once; 0: all
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: int = 240  # minutes that one task may run; what is left goes on in the next
    gpus: int = 1  # of one task; 0: none asked for
    cpus: int = 4  # of one task
    mem_gb: float | None = None  # of one task
    constraint: str | None = None
    signal_seconds: int = 90  # before the time limit: keep a checkpoint and go back to the queue
    setup: list[str] = field(
        default_factory=list
    )  # shell lines before the worker starts: module load ...
    python: str | None = None  # command of the worker's Python; null: this one
    extra: dict[str, Any] = field(default_factory=dict)  # any other sbatch option, {mail-type: END}


@dataclass
class Run(Settings):
    """One cell: one adapter of one rank, trained to remember seqlen target tokens."""

    rank: int = 8
    seqlen: int = 128
    seed: int = 0  # of the adapter's initial weights, dropout and sample order
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=RandomData)
    adapter: Adapter = field(default_factory=MlpBlockAdapter)
    loss: Loss = field(default_factory=SftLoss)
    train: Train = field(default_factory=Train)


@dataclass(frozen=True)
class Request:
    """What one command asked for: the runs, where their folders go, how they are launched."""

    runs: list[Run]
    out: Path
    launch: Launch
    swept: list[str]  # the keys that were given several values


@dataclass
class Fit:
    """Settings of `pml fit`."""

    saturated_below: float = (
        0.69  # final loss (nats per token) at or below which a cell is left out, as in the paper
    )
    out: str | None = None  # folder of the report; null: fit/ inside the first path
    figures: bool = True
    draws: int = 4000  # of the bootstrap behind the intervals; 0 for none

    x: str = "rank"  # the size that the law is about: rank, or parameters (trainable ones), which compares placements


@dataclass
class Predict:
    """Settings of `pml predict`."""

    rank: list[float] = field(
        default_factory=list
    )  # or numbers of parameters, where the law was fitted with x=parameters
    seqlen: list[float] = field(default_factory=list)  # target tokens
    group: str | None = None  # name or slug of one group of the report; null: all
    base: float | None = (
        None  # loss of the base model, nats per token; null: that of the cells trained
    )


@dataclass
class Lasting:
    """Settings of `pml lasting`."""

    text: str | None = (
        None  # UTF-8 file for the damage; null: documentation that the embedded model has not seen
    )
    tokens: int = 2000  # of that text, and of random tokens; 0: no damage is measured
    decode: bool = True  # in bfloat16 also decode freely: teacher forcing decides recall only in exact arithmetic
    device: str = "auto"  # auto: cuda where there is one, else cpu
    out: str | None = None  # folder of the results; null: the first path
    figures: bool = True


@dataclass
class Transition:
    """Settings of `pml transition`."""

    out: str | None = None  # folder of the report; null: transition/ inside the first path
    figures: bool = True
    draws: int = 2000  # of the bootstrap of Spearman's rho; 0 for none
    rank: list[int] = field(default_factory=list)  # only runs of these ranks; empty: all
    seqlen: list[int] = field(default_factory=list)  # only runs of these lengths, as asked for
    text: int | None = None  # data.seed of the text that the stubborn grid shows; null: the lowest


Report: TypeAlias = Fit | Predict | Lasting | Transition
