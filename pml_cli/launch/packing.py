"""From runs to packs: check every cell before anything runs, then group what can be trained together. Without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pml_cli.config.schema import Run
from pml_cli.data.cell import CellPlan
from pml_cli.data.curriculum import total_steps
from pml_cli.data.opened import samples_of
from pml_cli.errors import UserError, raise_all
from pml_cli.model.device import device_kind
from pml_cli.runs.run_id import content_hash, run_id

PACK_TOKENS = {
    "cpu": 2048,
    "cuda": 16384,
}  # tokens of one training step; beyond it packing no longer pays
MAX_CELLS = 64
SMALLEST_SHARE = 8  # packs are not made smaller than this part of the budget to balance devices
NEAREST_LENGTH = 0.5  # cells shorter than this share of a pack's longest would mostly be padding


@dataclass(frozen=True)
class Pack:
    """Cells that are trained as one batch: the same model, adapter kind and number of steps, near lengths."""

    cells: list[CellPlan]

    @property
    def checkpointing(self) -> bool:
        """Whether its layers above the adapter run again in backward instead of keeping what they computed."""
        return any(cell.checkpointing for cell in self.cells)

    @property
    def step_tokens(self) -> int:
        """Tokens of one training step, padding included."""
        return len(self.cells) * max(c.rows for c in self.cells) * max(c.tokens for c in self.cells)

    @property
    def tokens(self) -> int:
        """Tokens of the whole training, padding included."""
        return self.step_tokens * self.cells[0].steps


def check(runs: Sequence[Run]) -> list[CellPlan]:
    """Open every source and measure every cell.

    Raises:
        UserError: all faults at once, one line each.
    """
    faults: dict[str, None] = {}
    planned: dict[str, CellPlan] = {}
    for run in runs:
        try:
            cell = _planned(run)
        except UserError as error:
            faults |= dict.fromkeys(error.faults)
            continue
        planned.setdefault(cell.id, cell)
    faults |= dict.fromkeys(_copies(list(planned.values())) + _namesakes(list(planned.values())))
    raise_all(faults)
    return list(planned.values())


def _copies(cells: Sequence[CellPlan]) -> list[str]:
    """Cells that were meant as repeats and are copies: another data.seed, the same samples."""
    if len({cell.run.data.seed for cell in cells}) < 2:
        return []
    first: dict[object, CellPlan] = {}
    faults = []
    for cell in cells:
        data = dataclasses.replace(cell.run.data, seed=0)
        other = first.setdefault((f"{cell.run.model}{data}", tuple(cell.samples)), cell)
        if other.run.data.seed != cell.run.data.seed:
            seeds = (
                f"data.seed={cell.run.data.seed}: draws the same as data.seed={other.run.data.seed}"
            )
            faults.append(f"{seeds} from this source (data={cell.run.data.source}); leave one out")
    return faults


def _namesakes(cells: Sequence[CellPlan]) -> list[str]:
    """Two models of one name: tables and figures could not tell them apart."""
    paths: dict[str, dict[str, str]] = {}
    for name, path in dict.fromkeys((cell.run.model.name, cell.run.model.path) for cell in cells):
        paths.setdefault(name, {}).setdefault(content_hash(path), path)
    again = "'model.name=\"${basename:${.path},2}\"' (the last two parts of the path)"
    return [
        f"model.name={name}: {' and '.join(others.values())} are different models; name them apart, such as by {again}"
        for name, others in paths.items()
        if len(others) > 1
    ]


def _planned(run: Run) -> CellPlan:
    samples = samples_of(run)
    rows = min(run.train.batch, len(samples)) if run.train.batch else len(samples)
    tokens = max(len(s.prompt) + len(s.target) for s in samples) - 1
    return CellPlan(
        id=run_id(run),
        run=run,
        samples=samples,
        steps=total_steps(run.train, len(samples)),
        rows=rows,
        tokens=tokens,
        checkpointing=run.model.checkpointing is True,
    )


@dataclass(frozen=True)
class Packing:
    """How cells are cut into packs; the same for every process of a sweep."""

    pack_tokens: int = 0  # of one step; 0: by the kind of device
    devices: int = (
        1  # packs are made smaller until none is more than one device's share of the work
    )
    gpu: bool | None = None  # whether model.device=auto is a GPU; None: as on this machine
    memory: int | None = None  # bytes of one device; None: not known, not looked at


def make_packs(cells: Sequence[CellPlan], packing: Packing = Packing()) -> list[Pack]:
    """Cut the cells into packs within the budget of tokens a step, longest first."""
    share = 1
    while True:
        packs = _cut(cells, packing, share)
        largest = max(packs, key=lambda pack: (pack.tokens, len(pack.cells)), default=None)
        if largest is None or len(largest.cells) == 1:
            return packs
        balanced = largest.tokens * packing.devices <= sum(pack.tokens for pack in packs)
        if len(packs) >= packing.devices and (balanced or share >= SMALLEST_SHARE):
            return packs
        share *= 2


def _cut(cells: Sequence[CellPlan], packing: Packing, share: int) -> list[Pack]:
    groups: dict[str, list[CellPlan]] = {}
    for cell in cells:
        groups.setdefault(_together(cell), []).append(cell)
    packs = []
    for group in groups.values():
        kind = device_kind(group[0].run.model.device, packing.gpu)
        budget = (packing.pack_tokens or PACK_TOKENS[kind]) // share
        waiting: list[CellPlan] = []
        for cell in sorted(group, key=lambda c: (-c.step_tokens, -c.run.rank, c.id)):
            if waiting and not _fits(waiting, cell, budget):
                packs.append(Pack(waiting))
                waiting = []
            waiting.append(cell)
        packs.append(Pack(waiting))
    if packing.memory is not None:
        packs = [part for pack in packs for part in _within(pack, packing.memory)]
    return sorted(packs, key=lambda pack: (str(pack.cells[0].run.model), -pack.tokens))


def _within(pack: Pack, memory: int) -> list[Pack]:
    """A pack, or its parts where it would take more memory than there is; a single cell is tried in any case.

    One that does not fit by itself keeps less and computes more, where that helps and nobody has said otherwise.
    """
    from pml_cli.launch import cost_model

    if (needed := cost_model.memory(pack)) <= memory:
        return [pack]
    if len(pack.cells) == 1:
        less = sparing(pack)
        return [less if cost_model.memory(less) < needed else pack]
    middle = -(-len(pack.cells) // 2)
    halves = Pack(pack.cells[:middle]), Pack(pack.cells[middle:])
    return [part for half in halves for part in _within(half, memory)]


def without_cells(packs: Sequence[Pack], ids: Collection[str]) -> list[Pack]:
    """The packs without some cells, given by id; a pack of which nothing is left goes."""
    remaining = ([cell for cell in pack.cells if cell.id not in ids] for pack in packs)
    return [Pack(cells) for cells in remaining if cells]


def sparing(pack: Pack) -> Pack:
    """The pack with activation checkpointing, where the settings leave that open; else as it is."""
    if any(cell.run.model.checkpointing is not None for cell in pack.cells):
        return pack
    return Pack([dataclasses.replace(cell, checkpointing=True) for cell in pack.cells])


def _together(cell: CellPlan) -> str:
    run = cell.run
    return repr(
        (run.model, run.adapter, cell.steps, run.train.log_every, cell.rows > 1, cell.is_sampled)
    )


def _fits(waiting: list[CellPlan], cell: CellPlan, budget: int) -> bool:
    first = waiting[0]
    grown = Pack([*waiting, cell]).step_tokens
    near = cell.tokens >= NEAREST_LENGTH * first.tokens and cell.rows >= NEAREST_LENGTH * first.rows
    return len(waiting) < MAX_CELLS and grown <= budget and near
