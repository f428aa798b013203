"""What a reader uses of law.json: types and ranges, for a file that somebody else may have written.

The whole file is described by the records of `law_json.py`; numbers that are not finite are null
there.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from typing_extensions import NotRequired, TypedDict

from pml_cli.validation import Count, Lines, Number, Size, Text

# Log parameters and exponents: wider than any fit can give.
Parameter = Annotated[float, Ge(-1e4), Le(1e4)]
Positive = Annotated[float, Gt(0), Lt(1e15)]
# Loss in nats per token; far above log of any vocabulary.
Nats = Annotated[float, Ge(0), Lt(1e3)]


class CurveFields(TypedDict):
    """Mean loss of the base model at each length."""

    length: Annotated[list[Positive], Len(1)]
    nats: Annotated[list[Nats], Len(1)]


class BaseLossFields(CurveFields):
    """Base loss at each length, in the mean and for each text."""

    texts: Annotated[list[CurveFields], Len(1)]


class EmptyBaseLossFields(TypedDict):
    """Base loss of a group without cells."""

    length: Annotated[list[Positive], Len(0, 0)]


class RangeFields(TypedDict):
    """Least and largest of the cells; empty without cells."""

    rank: Annotated[list[Positive], Len(0, 2)]
    length: Annotated[list[Positive], Len(0, 2)]


class RecallFields(TypedDict):
    """The law of exact recall."""

    status: Text
    reason: str
    parameters: dict[str, Annotated[float, Ge(-1e6), Le(1e6)] | None]
    n: Count
    exact: Count
    texts: Count
    clusters: Count
    blur: dict[str, Number | None]


class ReasonFields(TypedDict):
    """Why a group has no law of the gain."""

    reason: str


class CentreFields(TypedDict):
    """Where the parameters of a law are centred."""

    log_rank: Parameter
    log_length: Parameter


class FormFields(TypedDict):
    """Which law: the fields of `forms.Form`."""

    link: Text
    offset: NotRequired[bool]
    floor: NotRequired[bool]
    level: NotRequired[bool]
    beta: NotRequired[Parameter | None]


class LawFields(TypedDict):
    """The chosen law of a group."""

    name: Text
    status: Text
    form: FormFields
    theta: dict[str, Parameter]
    parameters: dict[str, Number | None]
    centre: CentreFields
    covariance: list[list[Number | None]]
    covariance_clustered: list[list[Number | None]]
    clusters: Size
    covariance_texts: list[list[Number | None]]
    texts: Count


class DeviationFields(TypedDict):
    """How far the gains of one text lie from the law."""

    deviation: Number | None
    cells: Count


class BootstrapFields(TypedDict):
    """The bootstrap of the chosen law, whose draws stand at the end of the file."""

    clusters: Size


class NamedFields(TypedDict):
    """Any law of a group."""

    name: Lines


class GroupFields(TypedDict):
    """One group of comparable cells."""

    name: Lines
    slug: Text
    fit: ReasonFields
    laws: list[NamedFields]
    chosen: Text | None
    # Reports of earlier versions have none.
    intervals_95: NotRequired[dict[str, Annotated[list[Number | None], Len(2, 2)]]]
    bootstrap: BootstrapFields | None
    texts: list[DeviationFields]
    recall: RecallFields
    all_recall: NotRequired[RecallFields | None]
    share_recall: NotRequired[dict[Literal["0.5", "0.9", "0.99"], RecallFields]]
    tokens_per_sample: Positive | None
    range: RangeFields
    base_loss: BaseLossFields | EmptyBaseLossFields


class LineGroupFields(TypedDict):
    """One group against the line of parameters and bits; null where a number is not finite."""

    name: Lines
    texts: Count
    ratio: Number | None
    low: Number | None
    high: Number | None
    exponent: Number | None
    exponent_error: Number | None


class BitsLineFields(TypedDict):
    """Parameters against bits, over several groups."""

    loss: Text
    # Reports of earlier versions have none.
    size: NotRequired[Text]
    c: Number | None
    s: Parameter | None
    s_low: Number | None
    s_high: Number | None
    log_bits: Parameter
    level: Parameter
    covariance: Annotated[list[Annotated[list[Parameter | None], Len(2, 2)]], Len(2, 2)]
    between: Annotated[float, Ge(0), Le(1e4)] | None
    same_level_p: Number | None
    same_exponent_p: Number | None
    least_bits: Positive
    most_bits: Positive
    texts: Count
    outside: Count
    groups: Annotated[list[LineGroupFields], Len(1)]


class FileFields(TypedDict):
    """The file."""

    format: int
    # Reports of earlier versions have none.
    method: NotRequired[Count]
    x: Text
    groups: list[GroupFields]
    draws: dict[str, dict[str, list[Number | None]]]
    bits_lines: NotRequired[list[BitsLineFields]]
