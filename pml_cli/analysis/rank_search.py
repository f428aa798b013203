"""The least rank that knows the facts within a limit of forgetting: which cells to try next.

The rule, round by round. A cell is a rank and a seed; a rank works when every seed passes.

1. A ladder of ranks, each twice the one before, with the first seed. Where none passes it goes on
   upwards, as long as that brings the cells nearer to the limits.
2. The ranks between the largest that failed and the least that passed, with the first seed: all of
   them where they are few, else some, evenly by ratio.
3. What is left between them, and the other seeds of the least rank that still may work.

There are three rounds at most, not counting those in which nothing passed, and one more where the
least rung passed. More only while no rank has passed with every seed: where another seed fails at
the rank that the first has passed. A rank at which the first seed has failed is not tried with
another: it cannot be the answer, and a cell that fails trains to its last step, while one that
passes may stop early.

Recall is not quite monotonic in rank. So the answer is the least rank that did pass, whatever
failed above it; below it the ranks were tried that lie next to it, and the band says what was left
open.

Everything is decided by the trials alone, so that an interrupted search resumes where it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

# Rounds of a search from the first in which a rank passed, and more of them while no rank has
# passed with every seed.
MAX_ROUNDS = 3
UNCONFIRMED_ROUNDS = 3

# Ranks tried at once between a rank that failed and one that passed.
BETWEEN = 3

# All ranks up to here may be tried, above it steps of at most an eighth.
FINE_RANKS = 16

# Parameters that plain fine-tuning needs for so many bits, at even odds: N = 8.94 bits^0.780 on
# random tokens (embedded model and SmolLM2 alike). The first guess, no more.
PARAMETER_SCALE = 8.94
PARAMETER_EXPONENT = 0.780

# Rungs of the ladder below and above the first guess, and of those by which it goes on; the cap of
# what may be tried at all.
RUNGS_BELOW = 1
RUNGS_ABOVE = 2
RUNGS_AT_ONCE = 2
CAP_FACTOR = 16
LEAST_CAP = 32


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One cell that has ended."""

    rank: int
    seed: int

    recalled: float
    """Share of the facts that are recalled exactly; 0 for a run that failed."""

    tokens: float = 0.0
    """Share of target tokens that are right; breaks ties between trials of equal recall."""

    harm: float | None = None
    """Rise of the loss on other text, nats per token; None: not measured."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an adapter must reach."""

    exact: float = 1.0
    """Smallest share of the facts that must be recalled exactly."""

    max_forgetting: float | None = None
    """Most harm, nats per token; None: any."""

    def recalls(self, trial: Trial) -> bool:
        """Whether enough facts are known."""
        # 0.9 of 10 facts is 9 of them, whatever the rounding.
        return trial.recalled >= self.exact - 1e-9

    def passes(self, trial: Trial) -> bool:
        """Whether both limits are kept; a harm that was not measured keeps none."""
        if not self.recalls(trial):
            return False
        if self.max_forgetting is None:
            return True
        return trial.harm is not None and trial.harm <= self.max_forgetting

    def distance(self, trial: Trial) -> float:
        """How far a trial is from the limits: the larger of what is missing and of the excess."""
        missing = max(0.0, (self.exact - trial.recalled) / self.exact)
        if not self.max_forgetting or trial.harm is None:
            return missing
        excess = trial.harm / self.max_forgetting - 1
        return max(missing, excess)


@dataclass(frozen=True, kw_only=True)
class SearchState:
    """A search between two rounds."""

    ranks: Sequence[int]
    """All ranks that may be tried, ascending."""

    ladder: Sequence[int]
    """Ranks of the first round, ascending."""

    seeds: Sequence[int]
    limits: Limits
    trials: Sequence[Trial] = ()

    rounds: int = 0
    """Rounds that have ended."""

    missed: int = 0
    """Number of rounds after which no rank had passed yet."""

    def after_round(self, trials: Sequence[Trial]) -> SearchState:
        """The state after one more round with these trials."""
        following = dataclasses.replace(
            self, trials=[*self.trials, *trials], rounds=self.rounds + 1
        )
        has_missed = not following.promising()
        return dataclasses.replace(following, missed=self.missed + has_missed)

    def of_rank(self, rank: int) -> list[Trial]:
        """The trials of one rank."""
        return [trial for trial in self.trials if trial.rank == rank]

    def has_failed(self, rank: int) -> bool:
        """Whether a seed did not pass at a rank."""
        return any(not self.limits.passes(trial) for trial in self.of_rank(rank))

    def has_passed(self, rank: int) -> bool:
        """Whether a seed has passed at a rank."""
        return any(self.limits.passes(trial) for trial in self.of_rank(rank))

    def tried(self) -> list[int]:
        """The ranks that were tried, ascending."""
        return sorted({trial.rank for trial in self.trials})

    def promising(self) -> list[int]:
        """Ranks at which every seed passed that was tried, ascending."""
        return [rank for rank in self.tried() if not self.has_failed(rank)]

    def confirmed(self) -> list[int]:
        """Ranks at which every seed was tried and passed, ascending."""
        return [rank for rank in self.promising() if not self.missing_seeds(rank)]

    def missing_seeds(self, rank: int) -> list[int]:
        """Seeds that were not tried at a rank."""
        seeds = {trial.seed for trial in self.of_rank(rank)}
        return [seed for seed in self.seeds if seed not in seeds]


Cell = tuple[int, int]
"""Rank and seed."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a search has come to."""

    rank: int
    """The least rank that works; where none does, that of the trial nearest to the limits."""

    seed: int
    """Seed of the chosen cell at that rank."""

    reached: bool
    """Whether that cell keeps the limits."""

    confirmed: bool
    """Whether every seed does at this rank."""

    low: int
    """The least rank that may work, for all that was tried."""

    high: int | None
    """The least rank that works; None: none does."""

    trial: Trial
    """The chosen cell."""


def candidate_ranks(cap: int) -> list[int]:
    """Ranks worth telling apart: all up to 16, then in steps of at most an eighth.

    Args:
        cap: the largest.
    """
    ranks = list(range(1, min(cap, FINE_RANKS) + 1))
    step = FINE_RANKS // 8
    start = FINE_RANKS
    while start < cap:
        ranks += range(start + step, min(2 * start, cap) + 1, step)
        start *= 2
        step *= 2
    return ranks


def first_guess(bits: float, parameters: int) -> int:
    """A power of two near the rank that some data needs.

    Args:
        bits: of all targets, under the base model.
        parameters: of an adapter of rank 1.
    """
    needed = PARAMETER_SCALE * max(bits, 1.0) ** PARAMETER_EXPONENT
    exponent = round(math.log2(max(needed / parameters, 1.0)))
    return int(2**exponent)


def rank_cap(guess: int, widest: int) -> int:
    """The largest rank that may be tried.

    Args:
        guess: as `first_guess`.
        widest: the least width of the adapted matrices, beyond which a rank adds nothing.
    """
    return min(max(CAP_FACTOR * guess, LEAST_CAP), widest)


def ladder_around(guess: int, ranks: Sequence[int]) -> list[int]:
    """The ranks of the first round: powers of two about the first guess."""
    rungs = []
    for exponent in range(-RUNGS_BELOW, RUNGS_ABOVE + 1):
        rung = int(guess * 2.0**exponent)
        if rung in ranks:
            rungs.append(rung)
    return rungs or [ranks[-1]]


def next_cells(state: SearchState) -> list[Cell]:
    """The cells of the next round; none: the search is over."""
    if not state.trials:
        return _with_first_seed(state.ladder, state)
    if _is_over(state):
        return []
    if not state.promising():
        return _with_first_seed(_rungs_above(state), state)

    least = state.promising()[0]
    between = _evenly_spaced(_untried_between(state, least), _largest_failed(state, least))
    # The last regular round settles what it can.
    is_last = state.rounds + 1 >= _max_rounds(state)
    if between and not is_last:
        return _with_first_seed(between, state)

    cells = [(rank, seed) for rank in between for seed in state.seeds]
    cells += [(least, seed) for seed in state.missing_seeds(least)]
    return sorted(cells)


def answer(state: SearchState) -> Answer:
    """What the trials say; there must be one at least."""
    chosen = _chosen(state)
    reached = state.limits.passes(chosen)
    below = chosen.rank if reached else state.tried()[-1] + 1
    failed = [rank for rank in state.tried() if rank < below and not state.has_passed(rank)]
    open_ranks = [rank for rank in state.ranks if rank > max(failed, default=0)]

    return Answer(
        rank=chosen.rank,
        seed=chosen.seed,
        reached=reached,
        confirmed=chosen.rank in state.confirmed(),
        low=open_ranks[0] if open_ranks else state.ranks[-1] + 1,
        high=chosen.rank if reached else None,
        trial=chosen,
    )


def _chosen(state: SearchState) -> Trial:
    """The trial that is handed over."""
    limits = state.limits
    candidates = state.confirmed() or state.promising()
    if candidates:
        # Of its seeds the one that knows most, then the one that harms least.
        return min(state.of_rank(candidates[0]), key=_preference)

    passing = [trial for trial in state.trials if limits.passes(trial)]
    if passing:
        return min(passing, key=lambda trial: (trial.rank, *_preference(trial)))
    return min(
        state.trials,
        key=lambda trial: (limits.distance(trial), -trial.tokens, trial.rank, trial.seed),
    )


def _preference(trial: Trial) -> tuple[float, float, int]:
    """Sort key, the best trial first: most facts recalled, then least harm, then first seed."""
    harm = math.inf if trial.harm is None else trial.harm
    return -trial.recalled, harm, trial.seed


def _is_over(state: SearchState) -> bool:
    """Whether nothing is left to try, or no round."""
    confirmed = state.confirmed()
    spare = 0 if confirmed else UNCONFIRMED_ROUNDS
    if state.promising() and state.rounds >= _max_rounds(state) + spare:
        return True
    return (
        bool(confirmed)
        and confirmed[0] == state.promising()[0]
        and not _untried_between(state, confirmed[0])
    )


def _max_rounds(state: SearchState) -> int:
    """Rounds after which the search is over, once a rank has passed with every seed."""
    least_rung = state.ladder[0]
    is_low = least_rung in state.promising() and least_rung > state.ranks[0]
    return MAX_ROUNDS + state.missed + is_low


def _rungs_above(state: SearchState) -> list[int]:
    """Powers of two above all that was tried, as long as larger ranks come nearer to the limits."""
    if not still_improves(state):
        return []
    above = [rank for rank in state.ranks if rank > state.tried()[-1]]
    rungs = [rank for rank in above if _is_power_of_two(rank)]
    # The cap itself, where it is none.
    return rungs[:RUNGS_AT_ONCE] or above[-1:]


def still_improves(state: SearchState) -> bool:
    """Whether the largest rank tried is nearer to the limits than the one below it."""
    tried = state.tried()
    if len(tried) == 1:
        return True
    return _distance(state, tried[-1]) < _distance(state, tried[-2])


def _distance(state: SearchState, rank: int) -> tuple[float, float]:
    """From the limits; among equals the tokens decide."""
    return min((state.limits.distance(trial), -trial.tokens) for trial in state.of_rank(rank))


def _largest_failed(state: SearchState, below: int) -> int:
    """The largest rank below one that was tried and is not promising; 0: none was."""
    return max((rank for rank in state.tried() if rank < below), default=0)


def _untried_between(state: SearchState, rank: int) -> list[int]:
    """The ranks between the largest that failed and a promising one; none of them was tried."""
    failed = _largest_failed(state, rank)
    return [candidate for candidate in state.ranks if failed < candidate < rank]


def _evenly_spaced(ranks: Sequence[int], failed: int) -> list[int]:
    """At most BETWEEN of some ascending ranks, evenly spaced by ratio.

    Args:
        ranks: to choose from.
        failed: the largest rank below them that failed; 0: none.
    """
    if len(ranks) <= BETWEEN:
        return list(ranks)
    low = max(failed, ranks[0] / 2)
    high = ranks[-1] + 1
    chosen = set()
    for part in range(1, BETWEEN + 1):
        wanted = low * (high / low) ** (part / (BETWEEN + 1))
        chosen.add(min(ranks, key=lambda rank: abs(math.log(rank / wanted))))
    return sorted(chosen)


def _with_first_seed(ranks: Collection[int], state: SearchState) -> list[Cell]:
    return [(rank, state.seeds[0]) for rank in sorted(ranks)]


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
