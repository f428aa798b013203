"""Settings of the commands that read finished runs: fit, lasting, forgetting and others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from pml_cli.config.registry import GROUPS
from pml_cli.config.schema import DEVICE_PATTERN, DEVICES_ALLOWED
from pml_cli.config.setting import Settings, setting

# Of a text on which forgetting is measured.
MOST_TOKENS = 10_000_000


@dataclass(kw_only=True)
class ReportSettings(Settings):
    """Common to the commands that read finished runs."""


@dataclass(kw_only=True)
class MovedModel(Settings):
    """Where the base model of finished runs is now; it must hold the weights they had."""

    path: str | None = setting(
        None,
        help="where the base model is now, if it was moved",
        path="any",
        special={None: "where it was; the embedded model never moves"},
    )


@dataclass(kw_only=True)
class MovedData(Settings):
    """Where the data of finished runs is now; it must give the tokens they had."""

    path: str | None = setting(
        None,
        help="where the data file is now, if it was moved",
        path="any",
        special={None: "where it was"},
    )


@dataclass(kw_only=True)
class RunSettings(ReportSettings):
    """Common to the commands that run the models of finished runs again."""

    device: str = setting(
        "auto",
        help="cpu, cuda or cuda:N",
        pattern=DEVICE_PATTERN,
        allowed=DEVICES_ALLOWED,
        special={"auto": "cuda where there is one, else cpu"},
        suggestions=("auto", "cpu", "cuda"),
    )
    trust_remote_code: bool = setting(
        False, help="also take runs with model.trust_remote_code, which executes their models' code"
    )
    model: MovedModel = field(default_factory=MovedModel)
    data: MovedData = field(default_factory=MovedData)


@dataclass(kw_only=True)
class LawSettings(ReportSettings):
    """Common to the commands that fit laws."""

    saturated_below: float = setting(
        # ln 2: p = 1/2. The paper writes 0.69.
        math.log(2),
        help="cells with a final loss up to this are saturated; ln 2 is p = 1/2",
        unit="nats/token",
        minimum=0,
        finite=True,
    )
    draws: int = setting(
        4000,
        help="bootstrap draws behind the intervals",
        minimum=0,
        special={0: "no intervals"},
    )
    unconverged: str = setting(
        "censor",
        help="cells that had not converged: censor (their gain lies between the measured one and "
        "that plus expected_gain), drop (leave them out) or keep (take the gain as measured)",
        choices=("censor", "drop", "keep"),
    )
    x: str = setting(
        "rank",
        help="size that the law is about; parameters compares placements, effective counts what an "
        "adapter can use on so few tokens",
        choices=("rank", "parameters", "effective"),
    )


@dataclass(kw_only=True)
class Fit(LawSettings):
    """Settings of `pml fit`."""

    out: str | None = setting(
        None, help="folder of the report", path="any", special={None: "fit/ in the first path"}
    )
    figures: bool = setting(True, help="draw figures")


@dataclass(kw_only=True)
class Report(LawSettings):
    """Settings of `pml report`, which fits as `pml fit` does, and says the same numbers."""

    out: str | None = setting(
        None, help="file of the page", path="any", special={None: "report.html in the first path"}
    )
    runs: int = setting(12, help="runs whose tokens are shown", minimum=0, maximum=200)


@dataclass(kw_only=True)
class Predict(ReportSettings):
    """Settings of `pml predict`."""

    rank: list[float] = setting(
        [],
        help="ranks asked about, rank=4,8; parameters if the law is about them",
        minimum=1,
        finite=True,
    )
    seqlen: list[float] = setting(
        [], help="lengths asked about", unit="target tokens", minimum=1, finite=True
    )
    facts: list[float] = setting(
        [],
        help="number of facts that must all be recalled, instead of seqlen; facts=300",
        minimum=1,
        finite=True,
    )
    group: str | None = setting(
        None, help="one group of the report, by name or slug", special={None: "all"}
    )
    per_rank: float | None = setting(
        None,
        help="trainable parameters per rank of a model or placement not trained here; needs base=",
        minimum=1,
        finite=True,
        special={None: "those that were trained"},
    )
    inputs: float | None = setting(
        None,
        help="width that the modules of per_rank= read",
        minimum=1,
        finite=True,
        special={None: "half of per_rank, as beside one whole block"},
    )
    base: float | None = setting(
        None,
        help="loss of the base model on your text, for narrower bands",
        unit="nats/token",
        above=0,
        finite=True,
        special={None: "as on the texts trained"},
    )

    def validate(self) -> Iterator[str]:
        yield from super().validate()
        if self.inputs is None:
            return
        if self.per_rank is None:
            yield f"inputs={self.inputs:g}: of a model that was not trained; give per_rank= too"
        elif self.inputs > self.per_rank / 2:
            yield f"inputs={self.inputs:g}: must be at most half of per_rank ({self.per_rank:g})"


@dataclass(kw_only=True)
class Lasting(RunSettings):
    """Settings of `pml lasting`."""

    text: str | None = setting(
        None,
        help="UTF-8 file on which forgetting is measured",
        path="existing file",
        special={None: "Python documentation that the embedded model has not seen"},
    )
    tokens: int = setting(
        2000,
        help="tokens of that text, and as many random ones",
        minimum=0,
        maximum=MOST_TOKENS,
        allowed=f"from 0 to {MOST_TOKENS:,}",
        special={0: "forgetting is not measured"},
    )
    decode: bool = setting(
        True,
        # Teacher forcing decides recall only in exact arithmetic.
        help="in bfloat16 also decode greedily from the prompt",
    )
    out: str | None = setting(
        None, help="folder of the results", path="any", special={None: "the first path"}
    )
    figures: bool = setting(True, help="draw the figure")


# What `pml forgetting` measures by itself; those of `harm`, and the model's own text.
TEXT_KINDS = ("prose", "docs", "code", "chat", "own")


@dataclass(kw_only=True)
class Forgetting(RunSettings):
    """Settings of `pml forgetting`."""

    kinds: list[str] = setting(
        list(TEXT_KINDS),
        help="kinds of text; own: text sampled from the base model",
        choices=TEXT_KINDS,
    )
    text: str | None = setting(
        None,
        help="UTF-8 file, one more kind of text",
        path="existing file",
        special={None: "none"},
    )
    out: str | None = setting(
        None, help="folder of the results", path="any", special={None: "the first path"}
    )
    figures: bool = setting(True, help="draw the figure")

    def validate(self) -> Iterator[str]:
        yield from super().validate()
        if len(set(self.kinds)) < len(self.kinds):
            yield f"kinds={','.join(self.kinds)}: each kind once"
        if not self.kinds and self.text is None:
            yield "kinds=[]: give a kind, or text=FILE"


@dataclass(kw_only=True)
class Ask(RunSettings):
    """Settings of `pml ask`."""


@dataclass(kw_only=True)
class Transition(ReportSettings):
    """Settings of `pml transition`."""

    out: str | None = setting(
        None,
        help="folder of the report",
        path="any",
        special={None: "transition/ in the first path"},
    )
    figures: bool = setting(True, help="draw figures")
    draws: int = setting(
        2000,
        help="bootstrap draws behind the intervals of Spearman's rho",
        minimum=0,
        special={0: "no intervals"},
    )
    rank: list[int] = setting([], help="only runs of these ranks", minimum=1, special={"[]": "all"})
    seqlen: list[int] = setting(
        [], help="only runs of these lengths, as asked for", minimum=1, special={"[]": "all"}
    )
    text: int | None = setting(
        None,
        help="data.seed of the text whose stubborn tokens are drawn",
        special={None: "the lowest"},
    )


# By the name of the command.
REPORTS: dict[str, type[ReportSettings]] = {
    "fit": Fit,
    "report": Report,
    "predict": Predict,
    "lasting": Lasting,
    "forgetting": Forgetting,
    "transition": Transition,
    "ask": Ask,
}

# The commands that take no settings.
FLAGS_ONLY = ("status", "cancel", "track", "settings")

# What the keys of a run that belong to no group are listed under.
RUN = "run"


def section_names() -> list[str]:
    """What `pml settings` lists: the keys of runs, the groups, the commands that read runs."""
    return [RUN, *GROUPS, *REPORTS]
