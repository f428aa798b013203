"""What a fitted law says about cells that were not trained, and its inverse.

Given rank and length: gain, loss and the probability of exact recall. Given a length: the least
rank that reaches a target. Given a rank: the longest length, or the shortest one that stores so
many bits. Every number has a 95 % band: the error of the law (bootstrap draws, widened where there
are few clusters), the spread of a single cell around it, and the base losses of the texts.

Shapes: D draws of the law; arrays of 1 + D values hold that of the fit first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pml_cli.errors import UserError
from pml_cli.io import jsonable
from pml_cli.law.bits_line import BitsLine
from pml_cli.law.fitted_law import FittedLaw
from pml_cli.law.observations import EFFECTIVE, bits
from pml_cli.law.parameters import Interval
from pml_cli.stats import CONFIDENCE, LN2, Array
from pml_cli.validation import plain_number

# An answer is searched between these multiples of the smallest and largest trained value.
LEAST_MULTIPLE = 1e-4
LARGEST_MULTIPLE = 1e6

# Values, evenly spaced on logs, among which the first above the target is looked for.
GRID = 241

# Steps of the bisection between two of them, on logs: beyond the precision of float32.
BISECTIONS = 60

TARGETS = "verbatim, loss=NATS (final loss per token) or bits=BITS (gained in all)"

# Probabilities of exact recall for which a rank or length is given.
EVEN_CHANCE = 0.5
PROBABILITIES = (EVEN_CHANCE, 0.9)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a cell is to reach."""

    kind: str
    """verbatim (exact recall), loss or bits."""
    value: float = 0.0
    """Final loss in nats per token, or bits gained in all; 0 for verbatim."""

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}" if self.value else self.kind


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A number with its 95 % band; infinite where nothing reaches the target."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is given; a row of the answer for each value, or for each pair of rank and length."""

    ranks: Sequence[float] = ()
    lengths: Sequence[float] = ()
    """Target tokens."""
    facts: Sequence[float] = ()
    """Numbers of facts, all of which are to be recalled."""
    base: float | None = None
    """Loss of the base model, nats per token; that of the texts trained when None."""


def parse_target(text: str) -> Target:
    """`verbatim`, `loss=0.5` or `bits=2000`.

    Raises:
        UserError: anything else.
    """
    if text == "verbatim":
        return Target(kind="verbatim")

    # Text that is not a number becomes nan, which the bounds below refuse as well.
    kind, _, number = text.partition("=")
    try:
        value = plain_number(number)
    except ValueError:
        value = math.nan
    if kind in ("loss", "bits") and 0 < value < math.inf:
        return Target(kind=kind, value=value)
    raise UserError(f"--target {text}: must be {TARGETS}")


def check_question(question: Question, target: Target) -> None:
    """Refuse a question that asks nothing, or more than one thing at once.

    Raises:
        UserError: says what to give.
    """
    if not (question.lengths or question.ranks or question.facts):
        raise UserError(
            "no question: give seqlen=1000 (smallest rank), rank=8 (longest text), or both; "
            "facts=300 for facts"
        )
    if question.lengths and question.facts:
        raise UserError("give either seqlen= or facts=, not both: each sets the length")
    if question.facts and target.kind != "verbatim":
        raise UserError(
            f"--target {target}: does not apply to facts=, which always asks for exact recall"
        )
    if question.lengths and question.ranks and target.kind != "verbatim":
        raise UserError(
            f"--target {target}: needs something to solve for; give rank= or seqlen=, not both"
        )


def answer(law: FittedLaw, target: Target, question: Question) -> dict[str, Any]:
    """What the laws of one group predict, as plain values; None where nothing reaches the target.

    Returns:
        The law, the target, the number of texts, and `rows`; or `reason`, where the law that is
        needed is missing.
    """
    answered: dict[str, Any] = {
        "group": law.name,
        "law": law.form.name if law.form else None,
        "x": law.axis.name,
        "target": target.kind,
        "value": target.value or None,
        "range": {law.axis.name: law.ranks, "length": law.lengths},
        # Bands of one text do not know how texts differ.
        "texts": law.trained_texts,
        "rows": [],
    }

    reason = _missing_law(law, target, question)
    if reason:
        return answered | {"reason": reason}
    if question.facts:
        answered["rows"] = _facts_rows(law, question)
    elif question.ranks and question.lengths:
        pairs = itertools.product(question.ranks, question.lengths)
        answered["rows"] = [_cell(law, rank, length, question.base) for rank, length in pairs]
    elif question.lengths:
        answered["rows"] = [
            row
            for length in question.lengths
            for row in _least_rank(law, length, target, question.base)
        ]
    else:
        answered["rows"] = [
            row
            for rank in question.ranks
            for row in _longest_length(law, rank, target, question.base)
        ]
    return answered


def new_model(
    line: BitsLine,
    per_rank: float,
    lengths: Sequence[float],
    base: float,
    *,
    inputs: float | None = None,
) -> dict[str, Any]:
    """The rank at even chance that a model or placement outside of the groups would need.

    Args:
        line: parameters against bits.
        per_rank: trainable parameters of one rank of the new model.
        lengths: of the texts, target tokens.
        base: loss of the new model on the text before training, nats per token; ln V for random
            tokens.
        inputs: width that its modules read; None: half of `per_rank`, as beside one whole block.
    """
    rows = []
    for length in lengths:
        target_bits = length * base / LN2
        counts = line.parameters(target_bits)
        if line.size == EFFECTIVE.name:
            exact = [
                _rank_with(count, per_rank, inputs or per_rank / 2, length) for count in counts
            ]
        else:
            exact = [count / per_rank for count in counts]
        value, low, high = (_rounded(rank, upward=True) for rank in exact)
        outside = ""
        if not line.least_bits <= target_bits <= line.most_bits:
            outside = f"outside of the {line.least_bits:,.0f} to {line.most_bits:,.0f} bits trained"
        rows.append(
            {
                "length": length,
                "bits": target_bits,
                "rank": jsonable(Prediction(value=value, low=low, high=high)),
                "outside": outside,
            }
        )
    return {"group": "new model", "loss": line.loss, "groups": len(line.groups), "rows": rows}


def _rank_with(effective: float, per_rank: float, inputs: float, length: float) -> float:
    """The rank at which an adapter has so many effective parameters; infinite: at none.

    M square modules of I inputs have M r (min(T, I) + I - r) on T tokens.

    Args:
        effective: parameters wanted.
        per_rank: trainable parameters of one rank, 2 M I.
        inputs: I.
        length: T, tokens.
    """
    modules = per_rank / (2 * inputs)
    widths = min(length, inputs) + inputs
    # The smaller root of r^2 - widths r + effective / modules = 0, by terms that cannot overflow.
    square = effective / modules / widths
    share = 4 * square / widths
    if share > 1:
        return math.inf
    return 2 * square / (1 + math.sqrt(1 - share))


def _missing_law(law: FittedLaw, target: Target, question: Question) -> str:
    """Why this question has no answer; empty where it has one."""
    if question.facts:
        if law.all_recall is None or not math.isfinite(law.tokens_per_fact):
            return "no law for recalling all facts: it needs runs with several samples each"
        return ""
    # Both given: each law answers what it can.
    if question.ranks and question.lengths:
        return ""
    if target.kind == "verbatim" and law.recall is None:
        return f"no law of exact recall: {law.recall_reason}"
    if target.kind != "verbatim" and law.form is None:
        return f"no law of the gain: {law.form_reason}"
    return ""


def _facts_rows(law: FittedLaw, question: Question) -> list[dict[str, Any]]:
    """Rows about numbers of facts: the least rank that knows a share or all, or their chance."""
    assert law.all_recall is not None
    rows: list[dict[str, Any]] = []
    for count in question.facts:
        length = count * law.tokens_per_fact
        if not question.ranks:
            rows += _shares_rows(law, count, length)
            found = _recall_rows(law, "rank", length, law.all_recall.log_ranks)
            rows += [{"facts": count, "share": 1.0, **row} for row in found]
            continue
        for rank in question.ranks:
            row: dict[str, Any] = {law.axis.name: rank, "facts": count, "length": length}
            if law.recall:
                row["recall"] = jsonable(with_band(law.recall.probabilities(rank, length)))
            row["all_recall"] = jsonable(with_band(law.all_recall.probabilities(rank, length)))
            rows.append(row | {"outside": law.outside(rank, length)})
    return rows


def _shares_rows(law: FittedLaw, count: float, length: float) -> list[dict[str, Any]]:
    """The rank at even chance that a share of so many facts is known, a row for each share.

    Args:
        count: of the facts.
        length: of all of them together, target tokens.
    """
    rows = []
    for share, recall in sorted(law.share_recall.items()):
        ranks = _exp(recall.log_ranks(length, EVEN_CHANCE))
        row = _row(law, "rank", length, ranks, chance=EVEN_CHANCE)
        rows.append({"facts": count, "share": share, **row})
    return rows


def _cell(
    law: FittedLaw,
    rank: float,
    length: float,
    base: float | None,
) -> dict[str, Any]:
    """Everything about one cell that the laws of its group say."""
    row: dict[str, Any] = {law.axis.name: rank, "length": length}
    if law.form:
        base_loss = _base_losses(law, length, base)
        gain = law.gain(rank, length, base_loss)
        row |= {
            "base_loss": float(base_loss[0]),
            "gain": jsonable(with_band(gain)),
            "loss": jsonable(with_band(base_loss - gain)),
            "bits": jsonable(with_band(bits(length, gain))),
        }
    # Recall has a law of its own.
    if law.recall:
        row["recall"] = jsonable(with_band(law.recall.probabilities(rank, length)))
    row["outside"] = law.outside(rank, length)
    return row


def _base_losses(
    law: FittedLaw,
    length: float | Array,
    base: float | None,
) -> Array:
    """Loss of the base model for the fit and for each draw, (1 + D,)."""
    if base:
        return np.full(len(law.theta), base)
    return law.base_losses(length)


def _least_rank(
    law: FittedLaw,
    length: float,
    target: Target,
    base: float | None,
) -> list[dict[str, Any]]:
    """The least rank that reaches the target; a row for each probability of exact recall."""
    if target.kind == "verbatim":
        assert law.recall is not None
        return _recall_rows(law, "rank", length, law.recall.log_ranks)

    # The gain that the target asks for, nats per token.
    base_loss = _base_losses(law, length, base)
    if target.kind == "loss":
        needed: Array | float = base_loss - target.value
    else:
        needed = target.value * LN2 / length

    def excess(rank: Array) -> Array:
        # Rises with the rank.
        return law.gain(rank, length, base_loss) - needed

    ranks = _first_crossing(excess, law.ranks, len(law.theta))
    return [_row(law, "rank", length, ranks)]


def _longest_length(
    law: FittedLaw,
    rank: float,
    target: Target,
    base: float | None,
) -> list[dict[str, Any]]:
    """The longest text that keeps the target, or the shortest that stores so many bits."""
    if target.kind == "verbatim":
        assert law.recall is not None
        return _recall_rows(law, "length", rank, law.recall.log_lengths)

    def excess(length: Array) -> Array:
        # Bits rise with the length and may fall again, where the gain falls faster than 1 / length.
        base_loss = _base_losses(law, length, base)
        gain = law.gain(rank, length, base_loss)
        if target.kind == "loss":
            return (base_loss - gain) - target.value
        return length * gain / LN2 - target.value

    lengths = _first_crossing(excess, law.lengths, len(law.theta))
    return [_row(law, "length", rank, lengths, shortest=target.kind == "bits")]


def _recall_rows(
    law: FittedLaw,
    sought: str,
    given: float,
    log_solutions: Callable[[float, float], Array],
) -> list[dict[str, Any]]:
    """A row for each of PROBABILITIES of exact recall.

    Args:
        sought: rank or length; `given` is the other.
        log_solutions: from `given` and a probability to the log of what is sought, (1 + D,).
    """
    rows = []
    for probability in PROBABILITIES:
        solutions = _exp(log_solutions(given, probability))
        rows.append(_row(law, sought, given, solutions, chance=probability))
    return rows


def _first_crossing(
    excess: Callable[[Array], Array],
    trained: Interval,
    count: int,
) -> Array:
    """Where a function of each draw first rises above 0, (count,).

    Infinite where it does not; 0 where it is above from the start.

    Args:
        excess: from (count,) to (count,).
        trained: least and largest value of the cells.
    """
    start = math.log(trained[0] * LEAST_MULTIPLE)
    end = math.log(trained[1] * LARGEST_MULTIPLE)
    grid = np.linspace(start, end, GRID)
    # Not every function rises throughout: the first value above 0, and the one before it.
    low = np.full(count, start)
    high = np.full(count, end)
    above_at_start = excess(np.exp(low)) >= 0
    reached = above_at_start
    for before, value in itertools.pairwise(grid):
        newly = ~reached & (excess(np.full(count, math.exp(value))) >= 0)
        low = np.where(newly, before, low)
        high = np.where(newly, value, high)
        reached = reached | newly
        if reached.all():
            break

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = excess(np.exp(middle)) >= 0
        low = np.where(above, low, middle)
        high = np.where(above, middle, high)
    solution = np.where(reached, np.exp(high), np.inf)
    return np.where(above_at_start, 0.0, solution)


def _row(
    law: FittedLaw,
    sought: str,
    given: float,
    solutions: Array,
    *,
    shortest: bool = False,
    **columns: float,
) -> dict[str, Any]:
    """One answer of the inverse.

    Args:
        sought: rank or length; `given` is the other.
        solutions: (1 + D,).
        shortest: whether a length is the least that will do, not the most.
        columns: more columns of the row.
    """
    band = with_band(solutions)
    upward = sought == "rank" or shortest
    rounded = Prediction(
        value=_rounded(band.value, upward=upward),
        low=_rounded(band.low, upward=upward),
        high=_rounded(band.high, upward=upward),
    )
    # An infinite solution is outside of nothing.
    solution = rounded.value if math.isfinite(rounded.value) else None

    if sought == "rank":
        outside = law.outside(solution, given)
        given_name, sought_name = "length", law.axis.name
    else:
        outside = law.outside(given, solution)
        given_name, sought_name = law.axis.name, "length"
    return {given_name: given, **columns, sought_name: jsonable(rounded), "outside": outside}


def _rounded(value: float, *, upward: bool) -> float:
    """What is the least that will do is rounded up and is at least 1; what is the most, down."""
    if not math.isfinite(value):
        return value
    if upward:
        return max(1.0, float(math.ceil(value)))
    return float(math.floor(value))


def _exp(logs: Array) -> Array:
    """exp of (1 + D,) values; infinite, in JSON null, where no number holds it."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(logs))


def with_band(values: Array) -> Prediction:
    """The fit's value, and the middle 95 % of the draws.

    Args:
        values: (1 + D,); the ends of the band are draws, as infinity has no mean.
    """
    fitted = float(values[0])
    draws = np.sort(values[1:])
    if not len(draws):
        return Prediction(value=fitted, low=math.nan, high=math.nan)

    tail = (1 - CONFIDENCE) / 2
    last = len(draws) - 1
    low = float(draws[int(tail * last)])
    high = float(draws[math.ceil((1 - tail) * last)])
    return Prediction(value=fitted, low=low, high=high)
