"""From runs to packs: check every cell before anything runs, then group what trains together.

Without torch.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pml_cli.config.cache_key import forget_files
from pml_cli.config.schema import MOST_STEPS, Launch, Run
from pml_cli.data.cell import CellPlan
from pml_cli.data.curriculum import steps_for_all_samples, total_steps
from pml_cli.data.generic_text import generic_windows
from pml_cli.data.opened import packed_size_of, samples_of, tokens_hash_of
from pml_cli.data.resolve import resolved_run
from pml_cli.data.stream import fetch_unmeasured
from pml_cli.errors import UserError, raise_all
from pml_cli.format import counted
from pml_cli.launch.cost_model import peak_memory
from pml_cli.launch.devices import memory_per_worker
from pml_cli.launch.pack import Pack
from pml_cli.model.device import device_kind
from pml_cli.model.dims import check_adapter, check_start, is_streamed
from pml_cli.results.run_folders import run_key
from pml_cli.results.run_id import model_hash, run_id

# Input tokens of one training step; larger steps are not faster.
PACK_TOKENS = {"cpu": 2048, "cuda": 16384}

# Cells of a pack, at most.
MAX_CELLS = 64

# To keep all devices busy, packs are made smaller down to this part of the budget.
MAX_SPLIT = 8

# Cells below this share of a pack's longest row would mostly be padding.
MIN_FILL = 0.5


def check_with_weights(runs: Sequence[Run]) -> list[CellPlan]:
    """As `check`, for runs that will be trained: nothing that they are resolved to is assumed.

    Weights are downloaded from the hub where it depends on them.
    """
    cells = check(runs)
    # Only now, as gigabytes are too much for a sweep with a misspelt setting.
    if fetch_unmeasured(runs):
        forget_files()
        return check(runs)
    return cells


def check(runs: Sequence[Run]) -> list[CellPlan]:
    """Open every source, measure every cell, and refuse cells that nobody should ask for.

    Args:
        runs: they are resolved (`data/resolve.py`); what depends on weights that are not on this
            machine is assumed.

    Returns:
        One plan for each distinct run, in the given order.

    Raises:
        UserError: all faults at once, one line each.
    """
    cells, faults = _plan_all(runs)
    faults += [*_short_curricula(cells), *_copies(cells), *_equal_batches(cells)]
    raise_all([*faults, *_ambiguous_names(cells)])
    return cells


def plan_requested(runs: Sequence[Run]) -> list[CellPlan]:
    """As `check`, for cells that were requested before: all that can be trained are.

    An earlier version may have taken what this one refuses to be asked for.

    Raises:
        UserError: all cells that cannot be trained at once, one line each.
    """
    cells, faults = _plan_all(runs)
    raise_all(faults)
    return cells


def _plan_all(runs: Sequence[Run]) -> tuple[list[CellPlan], list[str]]:
    """One plan for each distinct run, and a line for each that cannot be trained."""
    faults: list[str] = []
    planned: dict[str, CellPlan] = {}
    for run in runs:
        try:
            cell = _plan(run)
        except UserError as error:
            faults += error.faults
            continue
        first = planned.setdefault(run_key(cell.id), cell)
        faults += _differences(first, cell)
    return list(planned.values()), faults


def _plan(run: Run) -> CellPlan:
    run = resolved_run(run)
    check_adapter(run.model, run.adapter)
    check_start(run)
    samples = samples_of(run)
    _check_full_batch(run, len(samples))
    # Refuses a text that cannot be read, or that leaves no window.
    generic_windows(run)
    steps = total_steps(run.train, len(samples))
    if steps > MOST_STEPS:
        allowed = f"{steps:,} steps of {counted(samples, 'sample')}; at most {MOST_STEPS:,}"
        raise UserError(f"train.epochs={run.train.epochs}: {allowed}")
    batch = run.train.batch or len(samples)
    longest = max(len(sample.prompt) + len(sample.target) for sample in samples)

    return CellPlan(
        id=run_id(run),
        run=run,
        samples=samples,
        tokens_hash=tokens_hash_of(run),
        steps=steps,
        rows=min(batch, len(samples)),
        # The last token is only predicted.
        tokens=longest - 1,
        packed=packed_size_of(run, min(batch, len(samples))),
        checkpointing=run.model.checkpointing is True,
        stream=run.model.stream,
    )


def _check_full_batch(run: Run, samples: int) -> None:
    """Refuse a line search on minibatches, whose loss is another function at every trial.

    Raises:
        UserError: names the setting.
    """
    train = run.train
    if train.optimizer != "lbfgs":
        return
    needs = "train.optimizer=lbfgs needs all samples in every step; muon takes minibatches"
    if train.curriculum:
        raise UserError(f"train.curriculum={train.curriculum}: {needs}")
    if 0 < train.batch < samples:
        raise UserError(f"train.batch={train.batch}: {needs} (samples: {samples})")


def _short_curricula(cells: Sequence[CellPlan]) -> list[str]:
    """Faults of cells whose steps end before the curriculum has come to all samples.

    The others would count in every result as samples that were trained.
    """
    faults = []
    for cell in cells:
        train, samples = cell.run.train, len(cell.samples)
        # Epochs are set against the boundaries by the settings themselves.
        if not train.curriculum or train.epochs is not None:
            continue
        needed = steps_for_all_samples(train, samples)
        if needed > train.steps:
            faults.append(
                f"train.curriculum={train.curriculum}: comes to all of the "
                f"{counted(samples, 'sample')} after {needed:,} steps; "
                f"train.steps={train.steps} must be at least that"
            )
    return faults


def _differences(first: CellPlan, other: CellPlan) -> list[str]:
    """What is wrong where two requested cells have the id of one run."""
    first_model, other_model = first.run.model, other.run.model
    if first.tokens_hash != other.tokens_hash:
        return [
            f"model.path={other_model.path}: the same model as {first_model.path}, but for files "
            "of its tokenizer that run ids do not count; sweep it into another out="
        ]

    if first_model.name != other_model.name:
        same = f"the same model as {first_model.name}"
        return [f"model.name={other_model.name}: {same}; leave one of them out"]
    return []


def _copies(cells: Sequence[CellPlan]) -> list[str]:
    """Faults of cells that were meant as repeats and are copies.

    They have another data.seed and the same samples, in whatever order: the analysis would take
    them as several texts.
    """
    if len({cell.run.data.seed for cell in cells}) < 2:
        return []

    faults = []
    first_with: dict[object, CellPlan] = {}
    for cell in cells:
        data = dataclasses.replace(cell.run.data, seed=0)
        counts = frozenset(Counter(cell.samples).items())
        other = first_with.setdefault((f"{cell.run.model}{data}", counts), cell)
        seed, other_seed = cell.run.data.seed, other.run.data.seed
        if seed == other_seed:
            continue
        same = f"data.seed={seed}: draws the same as data.seed={other_seed}"
        source = f"from this source (data={cell.run.data.source})"
        advice = "leave one out"
        if list(cell.samples) != list(other.samples):
            source += f", its {counted(cell.samples, 'sample')} in another order"
            advice = f"to repeat a training give seed={other_seed},{seed}, not data.seed"
        faults.append(f"{same} {source}; {advice}")
    return faults


def _equal_batches(cells: Sequence[CellPlan]) -> list[str]:
    """Faults of cells that differ in their minibatches alone, of which each holds all samples."""
    full = [cell for cell in cells if cell.rows == len(cell.samples)]
    if len({cell.run.train.batch for cell in full}) < 2:
        return []

    faults = []
    first_with: dict[str, CellPlan] = {}
    for cell in full:
        train = dataclasses.replace(cell.run.train, batch=0)
        run = dataclasses.replace(cell.run, train=train)
        first = first_with.setdefault(str(run), cell)
        batch, first_batch = cell.run.train.batch, first.run.train.batch
        if batch != first_batch:
            faults.append(
                f"train.batch={batch}: takes all of the {counted(cell.samples, 'sample')} of "
                f"seqlen={cell.run.seqlen}, as train.batch={first_batch} does; leave one of them "
                "out, or give such lengths a grid of their own in a sweep file"
            )
    return faults


def _ambiguous_names(cells: Sequence[CellPlan]) -> list[str]:
    """Faults of different models with the same name, which tables and figures would mix up."""
    # One path for each content: a copy is the same model.
    paths_by_name: dict[str, dict[str, str]] = {}
    for cell in cells:
        model = cell.run.model
        paths = paths_by_name.setdefault(model.name, {})
        paths.setdefault(model_hash(model.path), model.path)

    example = "'model.name=\"${basename:${.path},2}\"' (the last two parts of the path)"
    return [
        f"model.name={name}: {' and '.join(paths.values())} are different models; "
        f"name them apart, such as by {example}"
        for name, paths in paths_by_name.items()
        if len(paths) > 1
    ]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How cells are cut into packs; the same for every process of a sweep."""

    pack_tokens: int = 0
    """Input tokens of one step, at most; 0: `PACK_TOKENS` of the kind of device."""

    devices: int = 1
    """Devices to keep busy: no pack is made larger than one device's share of the work."""

    gpu: bool | None = None
    """Whether model.device=auto is a GPU; None: as on this machine."""

    memory: int | None = None
    """Bytes that one worker may fill; None: unknown, and not considered."""

    cpu_memory: int | None = None
    """The same for cells on the CPU in a sweep that also uses a GPU; None: `memory`."""

    def memory_on(self, kind: str) -> int | None:
        """Bytes that one worker may fill on a kind of device, cuda or cpu; None: unknown."""
        if kind == "cpu" and self.cpu_memory is not None:
            return self.cpu_memory
        return self.memory


def packing_for(launch: Launch, cells: Sequence[CellPlan]) -> Packing:
    """How cells are cut for the devices that a sweep is launched on."""
    runs = [cell.run for cell in cells]
    visible_devices = launch.visible_devices(runs)
    memory = round(launch.device_gb * 2**30) or None
    cpu_memory = None
    if memory is None and not launch.remote:
        kinds = {device_kind(run.model.device) for run in runs}
        memory = memory_per_worker("cuda" if "cuda" in kinds else "cpu", visible_devices)
        if len(kinds) > 1:
            cpu_memory = memory_per_worker("cpu", visible_devices)

    return Packing(
        pack_tokens=launch.pack_tokens,
        devices=len(visible_devices),
        gpu=launch.uses_gpu,
        memory=memory,
        cpu_memory=cpu_memory,
    )


def make_packs(
    cells: Sequence[CellPlan],
    packing: Packing | None = None,
    memory_of: Callable[[Pack], int] = peak_memory,
) -> list[Pack]:
    """Cut cells into packs within the budget of tokens a step, longest first.

    Args:
        cells: from `check` or `plan_requested`.
        packing: the budget; None: the defaults.
        memory_of: peak bytes of a pack.
    """
    packing = packing or Packing()
    parts = 1
    while True:
        packs = _cut(cells, packing, parts, memory_of)
        if not packs:
            return []

        largest = max(packs, key=_work)
        if len(largest.cells) == 1:
            return packs

        total = sum(pack.tokens for pack in packs)
        is_balanced = largest.tokens * packing.devices <= total
        is_small = parts >= MAX_SPLIT
        if len(packs) >= packing.devices and (is_balanced or is_small):
            return packs
        parts *= 2


def _work(pack: Pack) -> tuple[int, int]:
    return pack.tokens, len(pack.cells)


def _cut(
    cells: Sequence[CellPlan],
    packing: Packing,
    parts: int,
    memory_of: Callable[[Pack], int],
) -> list[Pack]:
    """Packs with at most 1 / `parts` of the budget, by model, those with most work first."""
    groups: dict[str, list[CellPlan]] = {}
    for cell in cells:
        groups.setdefault(_compatible_key(cell), []).append(cell)

    packs: list[Pack] = []
    for group in groups.values():
        kind = device_kind(group[0].run.model.device, packing.gpu)
        budget = (packing.pack_tokens or PACK_TOKENS[kind]) // parts
        memory = packing.memory_on(kind)
        filled = _fill_packs(_with_stream(group, memory), budget)
        if memory is None:
            packs += filled
            continue
        for pack in filled:
            packs += _fit_memory(pack, memory, memory_of)

    # One model after the other, so that each is loaded once.
    return sorted(packs, key=_training_order)


def _training_order(pack: Pack) -> tuple[str, int]:
    return str(pack.cells[0].run.model), -pack.tokens


def _compatible_key(cell: CellPlan) -> str:
    """Equal for cells that can be trained in one batch."""
    run = cell.run
    return repr(
        (
            run.model,
            run.adapter,
            cell.steps,
            run.train.optimizer,
            # L-BFGS warms up untrained adapters alone, all cells at once.
            run.train.optimizer == "lbfgs" and run.train.start is not None,
            run.train.log_every,
            cell.rows > 1,
            cell.is_sampled,
        )
    )


def _with_stream(cells: Sequence[CellPlan], memory: int | None) -> Sequence[CellPlan]:
    """Cells of one model, told whether it is streamed: every worker then does as was priced.

    Args:
        cells: that use the model.
        memory: bytes that one worker may fill; None: unknown, each worker decides by its device.
    """
    if memory is None:
        return cells
    stream = is_streamed(cells[0].run.model, memory)
    return [dataclasses.replace(cell, stream=stream) for cell in cells]


def _fill_packs(cells: Sequence[CellPlan], budget: int) -> list[Pack]:
    """Fill one pack after the other with the longest cells that are left."""
    packs = []
    filling: list[CellPlan] = []
    for cell in sorted(cells, key=_filling_order):
        if filling and not _fits(filling, cell, budget):
            packs.append(Pack(cells=filling))
            filling = []
        filling.append(cell)
    return [*packs, Pack(cells=filling)]


def _filling_order(cell: CellPlan) -> tuple[int, int, str]:
    return -cell.step_tokens, -cell.run.rank, cell.id


def _fits(filling: list[CellPlan], cell: CellPlan, budget: int) -> bool:
    longest = filling[0]
    if cell.tokens < MIN_FILL * longest.tokens or cell.rows < MIN_FILL * longest.rows:
        return False
    tokens = Pack(cells=[*filling, cell]).step_tokens
    return len(filling) < MAX_CELLS and tokens <= budget


def _fit_memory(pack: Pack, memory: int, memory_of: Callable[[Pack], int]) -> list[Pack]:
    """A pack, or its halves until they fit the memory of a device.

    A single cell that does not fit gets activation checkpointing, where that helps and the settings
    leave it open; it is tried in any case.
    """
    needed = memory_of(pack)
    if needed <= memory:
        return [pack]
    if len(pack.cells) == 1:
        smaller = with_checkpointing(pack)
        return [smaller if memory_of(smaller) < needed else pack]

    middle = -(-len(pack.cells) // 2)
    first = _fit_memory(Pack(cells=pack.cells[:middle]), memory, memory_of)
    second = _fit_memory(Pack(cells=pack.cells[middle:]), memory, memory_of)
    return first + second


def without_cells(packs: Sequence[Pack], ids: Collection[str]) -> list[Pack]:
    """The packs without some cells, given by id; packs without any cell are left out."""
    remaining = []
    for pack in packs:
        cells = [cell for cell in pack.cells if cell.id not in ids]
        if cells:
            remaining.append(Pack(cells=cells))
    return remaining


def with_checkpointing(pack: Pack) -> Pack:
    """The pack with activation checkpointing, unless the settings say otherwise."""
    # All cells of a pack have the same model.
    if pack.cells[0].run.model.checkpointing is not None:
        return pack
    return Pack(cells=[dataclasses.replace(cell, checkpointing=True) for cell in pack.cells])
