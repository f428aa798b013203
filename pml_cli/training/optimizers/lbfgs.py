"""L-BFGS over a bank of adapters: each cell with pairs and a line search of its own.

Liu & Nocedal 1989. A step of the trainer is one forward-backward pass that all cells share: a trial
of the line search of each, and mostly its only one. The first passes are Muon's: adapters begin at
a saddle point (B = 0), which L-BFGS leaves slowly.

Shapes: K cells, P numbers of a cell's adapter (padding included, which stays 0), C cells of the K.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from pml_cli.config.schema import LEARNING_RATES
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.training.energy import Moments
from pml_cli.training.limits import LBFGS_PAIRS
from pml_cli.training.optimizers.base import Optimizer
from pml_cli.training.optimizers.convergence import expected_gain
from pml_cli.training.optimizers.line_search import Point, Search, strong_wolfe
from pml_cli.training.optimizers.muon import Muon
from pml_cli.training.optimizers.secants import Secants, dot
from pml_cli.training.optimizers.whitening import Whitening

# Passes under Muon at the beginning.
WARM_UP = 20

# Stands in for a direction of length 0.
TINY = 1e-30

# Attributes of LBFGS that are (K, P).
_VECTORS = ("x", "direction", "grad", "best_grad")


class LineSearch:
    """The line search of one cell, which can be written down and gone on with.

    Attributes:
        start: where it began.
        first: the first trial.
        largest_change: largest absolute entry of the direction.
        trials: so far.
        best: the point that it would go to now: the acceptable one, or that with the smallest loss.
        t: the step of the next trial.
        has_ended: whether no further trial is needed.
    """

    def __init__(self, start: Point, first: float, largest_change: float) -> None:
        """Before the first trial; see the class for the arguments."""
        self.start = start
        self.first = first
        self.largest_change = largest_change
        self.trials: list[Point] = []
        self.best = start
        self.has_ended = False
        self._search: Search = strong_wolfe(start, first, largest_change)
        self.t = next(self._search)

    def take(self, loss: float, slope: float) -> bool:
        """Take the trial at `t`.

        Returns:
            whether it is the best one now.
        """
        trial = Point(self.t, loss, slope)
        self.trials.append(trial)
        if loss < self.best.loss:
            self.best = trial
        try:
            self.t = self._search.send(trial)
        except StopIteration as ended:
            self.has_ended = True
            # An acceptable trial is the best one, even where another had a lower loss.
            if ended.value is trial:
                self.best = trial
        return self.best is trial

    def numbers(self) -> list[float]:
        """What `from_numbers` takes."""
        numbers = [self.first, self.largest_change, self.start.loss, self.start.slope]
        for trial in self.trials:
            numbers += [trial.loss, trial.slope]
        return numbers

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> LineSearch:
        """The search that `numbers` wrote down: it is given its trials again."""
        first, largest_change, loss, slope, *of_trials = numbers
        search = cls(Point(0.0, loss, slope), first, largest_change)
        for trial_loss, trial_slope in zip(of_trials[::2], of_trials[1::2], strict=True):
            search.take(trial_loss, trial_slope)
        return search


class LBFGS(Optimizer):
    """L-BFGS with a strong Wolfe line search; the learning rate is the first trial, usually 1.

    Matches torch.optim.LBFGS(line_search_fn="strong_wolfe") cell by cell, except for the warm-up
    and the initial inverse Hessian, which whitens what the adapters read (`Whitening`). If a line
    search fails before any (s, y) pair exists, it is repeated with a full-length first trial,
    because the short one may change nothing in rounded arithmetic. If that fails too, the cell is
    frozen.

    Attributes:
        reads_inputs: see `Optimizer`.
        warm_up: passes under Muon at the beginning.
        passes: so far.
        searches: the search of each cell; None: before the first one, or the cell is frozen.
        x: start of the searches, (K, P).
        direction: of the searches, (K, P).
        grad: gradient at the start, (K, P).
        best_grad: gradient at the best trial, (K, P).
        secants: the inverse Hessian.
        lowest: the lowest loss so far of each cell, after each pass.
    """

    reads_inputs = True

    def __init__(
        self, bank: AdapterBank, weight_decay: Tensor, *, warm_up: int | None = None
    ) -> None:
        """Before the first pass.

        Args:
            bank: the adapters to be trained.
            weight_decay: 0; it is no part of the loss that is searched.
            warm_up: passes under Muon at the beginning; None: WARM_UP, but none of adapters that
                are trained already, which Muon's rate would lose.
        """
        if warm_up is None:
            is_trained = any(bool(B.any()) for B in bank.B.values())
            warm_up = 0 if is_trained else WARM_UP
        self.warm_up = warm_up
        self.passes = 0
        self._muon = Muon(bank, weight_decay)
        self._whitening: Whitening | None = None
        self.searches: list[LineSearch | None] = [None] * len(bank)

        self.x = flattened(bank.parameters()).detach()
        self.direction = torch.zeros_like(self.x)
        self.grad = torch.zeros_like(self.x)
        self.best_grad = torch.zeros_like(self.x)
        self.secants = Secants(self.x, LBFGS_PAIRS)
        self.lowest: list[list[float]] = [[] for _ in self.searches]

    def learn_inputs(self, bank: AdapterBank, moments: Sequence[Moments]) -> None:
        self._whitening = Whitening(bank, moments)
        self.secants.first_guess = self._whitening

    @torch.no_grad()
    def step(
        self,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        lr_K: Tensor,
        loss_K: Tensor,
    ) -> None:
        """Take one trial of every cell, and move to the next; see `Optimizer.step`."""
        self.passes += 1
        losses = loss_K.tolist()
        for lowest, loss in zip(self.lowest, losses, strict=True):
            # Written so that NaN takes no finite loss's place. Of a cell whose first loss is NaN no
            # later one is finite: its gradient is NaN too, and the cell fails.
            is_lower = not lowest or loss < lowest[-1]
            lowest.append(loss if is_lower else lowest[-1])

        if self.passes <= self.warm_up:
            self._warm_up(parameters, grads, loss_K)
            return

        grad = flattened(grads)
        if self.passes == self.warm_up + 1:
            # The first searches begin where the warm-up has ended.
            self.x = flattened(parameters)
            self.grad = grad
            start_losses = dict(enumerate(losses))
        else:
            ended = self._take_trials(grad, losses)
            start_losses = self._arrive(ended, lr_K)
        self._begin(start_losses, lr_K)
        self._write(parameters, self._next_steps())

    def _warm_up(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor], loss_K: Tensor
    ) -> None:
        """A step of Muon, with a rate that falls to 0 over the warm-up."""
        share = 1 - (self.passes - 1) / self.warm_up
        lr_K = torch.full_like(loss_K, LEARNING_RATES["muon"] * share)
        self._muon.step(parameters, grads, lr_K=lr_K, loss_K=loss_K)

    def _take_trials(self, grad: Tensor, losses: Sequence[float]) -> list[int]:
        """Give each search its trial.

        Returns:
            the cells whose search has ended.
        """
        slopes = dot(grad, self.direction).tolist()
        improved = []
        ended = []
        for k, search in enumerate(self.searches):
            if search is None:
                continue
            if search.take(losses[k], slopes[k]):
                improved.append(k)
            if search.has_ended:
                ended.append(k)

        self.best_grad[improved] = grad[improved]
        return ended

    def _arrive(self, cells: Sequence[int], lr_K: Tensor) -> dict[int, float]:
        """Move some cells to the point that their search ended at.

        Args:
            cells: their indices.
            lr_K: first trial of every cell, where it is not shortened.

        Returns:
            the cells that go on, with their loss there.
        """
        arrived: dict[int, float] = {}
        steps = []
        for k in cells:
            search = self.searches[k]
            assert search is not None
            # Without pairs, nothing was lower along the first guess. After a short first trial the
            # cell tries once more, at full length; after that it is frozen.
            has_failed = search.best is search.start and self.secants.pushed[k] == 0
            if has_failed and search.first >= float(lr_K[k]):
                self.searches[k] = None
                continue
            arrived[k] = search.best.loss
            steps.append(search.best.t)

        self._move(self._index(list(arrived)), self.x.new_tensor(steps))
        return arrived

    def _move(self, cells: Tensor, t: Tensor) -> None:
        """Move some cells, (C,), by t of their direction, (C,), and remember the pair (s, y)."""
        # Where nothing was lower, the next direction is the first guess.
        self.secants.forget(cells[t == 0])

        moves = t > 0
        cells = cells[moves]
        t = t[moves]
        s = self.direction[cells] * t[:, None]
        grad = self.best_grad[cells]
        self.secants.push(cells, s, grad - self.grad[cells])
        self.x[cells] += s
        self.grad[cells] = grad

    def _begin(self, losses: Mapping[int, float], lr_K: Tensor) -> None:
        """Begin the next search of some cells.

        Args:
            losses: of the cells, at the start.
            lr_K: first trial of every cell, where it has pairs.
        """
        if not losses:
            return
        cells = self._index(list(losses))
        grad = self.grad[cells]
        direction = self.secants.direction(cells, grad)
        self.direction[cells] = direction

        # As in torch.optim.LBFGS: the first step without pairs has an L1 norm of 1 at most.
        norm = direction.abs().sum(1).clamp(min=TINY)
        is_short = (self.secants.pushed[cells] == 0) & ~self._has_failed_short(losses, lr_K)
        first = torch.where(is_short, (1 / norm).clamp(max=1.0), 1.0)
        columns = [first * lr_K[cells], direction.abs().amax(1), dot(grad, direction)]
        # In one tensor, so that there is one wait for the device.
        rows = torch.stack([column.double() for column in columns], 1).tolist()

        for (k, loss), (t, largest, slope) in zip(losses.items(), rows, strict=True):
            # Where nothing is downhill, the cell stays.
            is_downhill = slope < 0 and math.isfinite(slope)
            start = Point(0.0, loss, slope)
            self.searches[k] = LineSearch(start, t, largest) if is_downhill else None

    def _has_failed_short(self, cells: Iterable[int], lr_K: Tensor) -> Tensor:
        """Whether the last search of some cells, (C,), found nothing after a short first trial."""
        failed = []
        for k in cells:
            last = self.searches[k]
            if last is None or last.best is not last.start:
                failed.append(False)
            else:
                failed.append(last.first < float(lr_K[k]))
        return torch.tensor(failed, device=self.x.device)

    def _next_steps(self) -> list[float]:
        """Where along its direction each cell has its next trial; 0 where it has none."""
        return [search.t if search else 0.0 for search in self.searches]

    def _write(self, parameters: Sequence[Tensor], steps: Sequence[float]) -> None:
        """Put every cell at so many steps along its direction."""
        t = self.x.new_tensor(steps)
        # Not x + 0 d for a cell that stays: its d may not be finite.
        points = torch.where(t[:, None] > 0, self.x + t[:, None] * self.direction, self.x)
        sizes = [parameter[0].numel() for parameter in parameters]
        for parameter, values in zip(parameters, points.split(sizes, 1), strict=True):
            parameter.copy_(values.view_as(parameter))

    def _index(self, cells: Sequence[int]) -> Tensor:
        return torch.tensor(cells, dtype=torch.int64, device=self.x.device)

    def expected_gain(self, k: int) -> float | None:
        search = self.searches[k]
        slope = search.start.slope if search else self._first_slope(k)
        # A quadratic with this inverse Hessian falls by half the slope to its minimum.
        return expected_gain(self.lowest[k], -slope / 2)

    @torch.no_grad()
    def _first_slope(self, k: int) -> float:
        """g' d of a cell that stays, along the first guess of the inverse Hessian.

        A search in rounded numbers may fail where the gradient is still large.
        """
        cells = self._index([k])
        grad = self.grad[cells]
        return float(dot(grad, self.secants.direction(cells, grad)))

    def is_searching(self, k: int) -> bool:
        return self.searches[k] is not None

    @torch.no_grad()
    def settle(self, parameters: Sequence[Tensor], cells: Sequence[int]) -> None:
        if self.passes <= self.warm_up:
            return
        steps = self._next_steps()
        for k in cells:
            search = self.searches[k]
            steps[k] = search.best.t if search else 0.0
        self._write(parameters, steps)

    def retain_cells(self, cells: Sequence[int]) -> None:
        rows = list(cells)
        self._muon.retain_cells(rows)
        if self._whitening:
            self._whitening.retain_cells(rows)
        self.secants.retain_cells(rows)
        self.searches = [self.searches[k] for k in rows]
        self.lowest = [self.lowest[k] for k in rows]
        for name in _VECTORS:
            setattr(self, name, getattr(self, name)[rows])

    def state(self) -> dict[str, Tensor]:
        lowest = torch.tensor(self.lowest, dtype=torch.float64)
        state = self._muon.state() | {"lbfgs.lowest": lowest}
        if self.passes < self.warm_up:
            return state

        numbers = [search.numbers() if search else [] for search in self.searches]
        state["lbfgs.search"] = _padded(numbers)
        for name in _VECTORS:
            state[f"lbfgs.{name}"] = getattr(self, name)
        for name, values in self.secants.state().items():
            state[f"lbfgs.pairs.{name}"] = values
        return state

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        self.passes = step
        self._muon.restore(tensors, step)
        self.lowest = tensors["lbfgs.lowest"].tolist()
        if step < self.warm_up:
            return

        numbers = _unpadded(tensors["lbfgs.search"])
        self.searches = [LineSearch.from_numbers(row) if row else None for row in numbers]
        for name in _VECTORS:
            setattr(self, name, tensors[f"lbfgs.{name}"])
        pairs = {name: tensors[f"lbfgs.pairs.{name}"] for name in self.secants.state()}
        self.secants.restore(pairs)


def flattened(parameters: Sequence[Tensor]) -> Tensor:
    """All parameters of each cell in a row, (K, P)."""
    return torch.cat([parameter.flatten(1) for parameter in parameters], 1)


def _padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """Rows of different lengths as one tensor of float64, the length of each row first."""
    longest = max(len(row) for row in rows)
    padded = []
    for row in rows:
        padding = [0.0] * (longest - len(row))
        padded.append([len(row), *row, *padding])
    return torch.tensor(padded, dtype=torch.float64)


def _unpadded(padded: Tensor) -> list[list[float]]:
    """The rows that `_padded` was given."""
    return [row[1 : 1 + int(row[0])] for row in padded.tolist()]
