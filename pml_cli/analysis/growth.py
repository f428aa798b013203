"""The longest prefix that an adapter recalls whole, grown from its last solution.

The rule. Attempt after attempt the adapter is trained on a prefix of the text, from the weights of
the attempt that recalled most, until the prefix is recalled whole or the passes of an attempt are
spent.

1. The first length is recalled: the next is longer by `factor`. It goes on so until one fails.
2. From then on the next length lies between the longest prefix that was recalled and the shortest
   length that was not, halfway by ratio; until these are `resolution` tokens apart.

A failed attempt counts by its first wrong token: what lies before it is a prefix recalled whole, as
the tokens after it do not change what a model writes before.

Everything is decided by the attempts alone, so that an interrupted growth resumes where it was.
After the idea of Progressive Cramming (ICML 2026), which grows a text for one input vector.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Why a growth has ended.
EXACT = "exact"
WHOLE_TEXT = "whole text"
BUDGET = "budget"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One length that was tried."""

    length: int
    """Target tokens."""

    recalled: int
    """Tokens before the first wrong one; `length` where there is none."""

    passes: int = 0
    """Forward-backward passes that it took."""

    @property
    def is_whole(self) -> bool:
        """Whether the whole length is recalled."""
        return self.recalled >= self.length


@dataclass(frozen=True, kw_only=True)
class GrowthRule:
    """How lengths are chosen, and when it ends."""

    factor: float = 1.25
    """Factor by which the length is multiplied after a length that was recalled."""

    resolution: int = 1
    """Largest difference, in tokens, of the longest recalled and the shortest failed length."""

    passes: int | None = None
    """Most forward-backward passes of one growth; None: any number."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The growth of one adapter on one text, between two attempts."""

    first: int
    """The length to begin with."""

    longest: int
    """Tokens of the text, or as many as the model reads."""

    rule: GrowthRule
    attempts: Sequence[Attempt] = ()

    def after(self, attempt: Attempt) -> Growth:
        """The growth with one attempt more."""
        return dataclasses.replace(self, attempts=[*self.attempts, attempt])

    @property
    def held(self) -> int:
        """Tokens of the longest prefix that was recalled whole."""
        return max((attempt.recalled for attempt in self.attempts), default=0)

    @property
    def failed(self) -> int | None:
        """The shortest length beyond `held` that was not recalled; None: none has failed."""
        lengths = [attempt.length for attempt in self.attempts if not attempt.is_whole]
        return min((length for length in lengths if length > self.held), default=None)

    @property
    def best(self) -> int | None:
        """Index of the attempt that recalled most, the first of them; None: nothing is recalled."""
        if not self.held:
            return None
        recalled = [attempt.recalled for attempt in self.attempts]
        return recalled.index(self.held)

    @property
    def passes(self) -> int:
        """Forward-backward passes so far."""
        return sum(attempt.passes for attempt in self.attempts)

    def ended(self) -> str | None:
        """Why it has ended: `EXACT`, `WHOLE_TEXT`, `BUDGET`; None: it has not."""
        if self.held >= self.longest:
            return WHOLE_TEXT
        if self.failed is not None and self.failed - self.held <= self.rule.resolution:
            return EXACT
        if self.rule.passes is not None and self.passes >= self.rule.passes:
            return BUDGET
        return None

    def next_length(self) -> int | None:
        """The length to try next; None: the growth has ended."""
        if self.ended() is not None:
            return None
        if not self.attempts:
            return min(self.first, self.longest)

        low = self.held
        if self.failed is None:
            return min(max(low + 1, math.ceil(low * self.rule.factor)), self.longest)
        halfway = round(math.sqrt(max(low, 1) * self.failed))
        return min(max(halfway, low + 1), self.failed - 1)
