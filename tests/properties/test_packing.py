"""Packs: every cell once, within the budgets, the same whoever cuts them."""

import dataclasses
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model, Run, Train
from pml_cli.data.cell import CellPlan, PackedSize
from pml_cli.data.source import Sample
from pml_cli.launch.packing import (
    MAX_CELLS,
    PACK_TOKENS,
    Packing,
    make_packs,
    without_cells,
)

MODELS = [Model(device="cpu"), Model(device="cpu", layer=1)]
ADAPTERS = [MlpBlockAdapter(), LinearAdapter(), LinearAdapter(dropout=0.1)]
SAMPLES = [Sample(prompt=(1,), target=(2,))] * 4
BYTES_A_TOKEN = 1000


@st.composite
def cell_lists(draw):
    """Cells as `check` plans them, of a few models and adapters and any lengths."""
    shapes = draw(st.just([]) | st.lists(_shapes(), min_size=4, max_size=12))
    return [_cell(number, shape) for number, shape in enumerate(shapes)]


def _shapes():
    return st.fixed_dictionaries(
        {
            "model": st.sampled_from(MODELS),
            "adapter": st.sampled_from(ADAPTERS),
            "rank": st.sampled_from([1, 2, 8, 64]),
            "steps": st.sampled_from([10, 20]),
            "rows": st.sampled_from([1, 3, 4, 4, 4]),
            # Alike, or as different as they come.
            "tokens": st.integers(40, 60) | st.integers(1, 300),
            "packed": st.booleans(),
            # So that hundreds of cells cost no more to draw than a few.
            "copies": st.sampled_from([1, 1, 1, 2, 90]),
        }
    )


def _cell(number, shape):
    run = Run(
        rank=shape["rank"],
        model=shape["model"],
        adapter=shape["adapter"],
        train=Train(steps=shape["steps"]),
    )
    packed = PackedSize(rows=1, tokens=shape["tokens"] * shape["rows"], queries=1)
    plan = CellPlan(
        id=f"cell-{number:03d}",
        run=run,
        samples=SAMPLES,
        steps=shape["steps"],
        rows=shape["rows"],
        tokens=shape["tokens"],
        packed=packed if shape["packed"] else None,
    )
    return plan, shape["copies"]


def copied(cells):
    """Every cell as often as it is to be there, under ids of their own."""
    return [
        dataclasses.replace(cell, id=f"{cell.id}-{copy}")
        for cell, copies in cells
        for copy in range(copies)
    ]


def packings():
    return st.builds(
        Packing,
        pack_tokens=st.sampled_from([0, 10**6]) | st.integers(1, 5000),
        devices=st.integers(1, 9),
        gpu=st.just(False),
        memory=st.sampled_from([None, 0, 10**4, 10**5, 3 * 10**5, 10**6]),
    )


def trained_alike(cell):
    """Equal for cells that one batch can train."""
    run = cell.run
    sizes = (cell.steps, cell.rows > 1, cell.rows < len(cell.samples))
    return (repr(run.model), repr(run.adapter), *sizes)


def memory_of(pack):
    """Bytes; fewer under activation checkpointing."""
    return pack.step_tokens * BYTES_A_TOKEN // (2 if pack.checkpointing else 1)


def ids(packs):
    return [[cell.id for cell in pack.cells] for pack in packs]


@settings(max_examples=2 * settings().max_examples)
@given(cell_lists(), packings())
def test_every_cell_is_in_one_pack_within_the_budgets(drawn, packing):
    cells = copied(drawn)
    packs = make_packs(cells, packing, memory_of)
    assert sorted(itertools.chain(*ids(packs))) == sorted(cell.id for cell in cells)

    budget = packing.pack_tokens or PACK_TOKENS["cpu"]
    for pack in packs:
        assert len({trained_alike(cell) for cell in pack.cells}) == 1
        assert len(pack.cells) <= MAX_CELLS
        if len(pack.cells) > 1:
            assert pack.step_tokens <= budget
            assert packing.memory is None or memory_of(pack) <= packing.memory


@given(cell_lists(), packings(), st.randoms(use_true_random=False))
def test_packs_do_not_depend_on_the_order_of_the_cells(drawn, packing, random):
    cells = copied(drawn)
    packs = make_packs(cells, packing, memory_of)
    assert ids(make_packs(list(cells), packing, memory_of)) == ids(packs)

    random.shuffle(cells)
    shuffled = make_packs(cells, packing, memory_of)
    assert sorted(ids(shuffled)) == sorted(ids(packs))


@given(cell_lists(), packings())
def test_models_come_one_after_the_other_and_long_packs_first(drawn, packing):
    packs = make_packs(copied(drawn), packing, memory_of)
    models = [str(pack.cells[0].run.model) for pack in packs]
    assert sum(a != b for a, b in itertools.pairwise(models)) <= len(MODELS) - 1
    for first, second in itertools.pairwise(packs):
        if first.cells[0].run.model == second.cells[0].run.model:
            assert first.tokens >= second.tokens


@given(cell_lists(), st.sets(st.integers(0, 11)))
def test_what_has_ended_is_left_out_of_the_packs(drawn, ended):
    cells = copied(drawn)
    gone = {cell.id for number, cell in enumerate(cells) if number in ended}
    packs = without_cells(make_packs(cells), gone)
    left = [cell.id for cell in cells if cell.id not in gone]
    assert sorted(itertools.chain(*ids(packs))) == sorted(left)
    assert all(pack.cells for pack in packs)
