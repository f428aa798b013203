"""From runs to packs: all faults at once, and packs of what can be trained together."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pml_cli.config.request import load
from pml_cli.config.schema import LinearAdapter, Model, Run, Train
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.errors import UserError
from pml_cli.launch.packing import MAX_CELLS, Packing, check, make_packs
from pml_cli.results.run_id import run_id
from pml_cli.training.losses.memft_ot import MemftOtLoss

CPU = Model(device="cpu")


def run(rank=4, seqlen=32, seed=0, **more):
    return Run(rank=rank, seqlen=seqlen, seed=seed, **({"model": CPU} | more))


def packs_of(*runs, tokens=0):
    return make_packs(check(runs), Packing(pack_tokens=tokens))


def test_each_cell_is_measured():
    (cell,) = check([run(seqlen=110, data=PhonebookData(), train=Train(batch=4, epochs=3))])
    # Ten digits and the end token each.
    assert len(cell.samples) == 10
    assert cell.rows == 4
    assert cell.steps == 9  # three epochs of 4 + 4 + 2
    assert cell.tokens == max(len(s.prompt) for s in cell.samples) + 11 - 1
    assert cell.id == run_id(cell.run)


def test_epochs_have_no_more_steps_than_a_run_may_have():
    with pytest.raises(UserError, match=r"^train\.epochs=4000000: 12,000,000 steps of 10 samples"):
        check([run(seqlen=110, data=PhonebookData(), train=Train(batch=4, epochs=4_000_000))])


def test_a_curriculum_is_not_packed_with_cells_that_see_all_their_samples():
    packs = packs_of(
        run(data=PhonebookData()), run(8, data=PhonebookData(), train=Train(curriculum=[2]))
    )
    assert len(packs) == 2


def test_a_curriculum_comes_to_all_samples_within_the_steps():
    """Ten facts: stages of 5 and 10, in minibatches of 2: 3 epochs of 3 steps, then one of 5."""

    def cell(**train):
        curriculum = {"curriculum": [3], "batch": 2}
        return run(seqlen=110, data=PhonebookData(), train=Train(**(curriculum | train)))

    with pytest.raises(UserError) as caught:
        check([cell(steps=13)])
    assert str(caught.value) == (
        "train.curriculum=[3]: comes to all of the 10 samples after 14 steps; "
        "train.steps=13 must be at least that"
    )
    # Epochs count, where they are given; a single sample is in use from the start.
    assert len(check([cell(steps=14), cell(steps=13, epochs=4)])) == 2
    assert check([run(train=Train(steps=2, curriculum=[9]))])


def test_the_curricula_that_ship_come_to_all_samples():
    few = ["data.seed=0", "rank=8", "loss=memft_ot", "train.lr=0.04"]
    runs = load("memft", few, Path("memft_curriculum")).runs
    assert [run.train.curriculum for run in runs] == [[], [20, 40, 60, 80]]
    check(runs)


def test_batches_that_hold_all_samples_are_one_training():
    """Of ten facts."""

    def cell(batch, **more):
        return run(seqlen=110, data=PhonebookData(), train=Train(batch=batch), **more)

    with pytest.raises(UserError) as caught:
        check([cell(0), cell(10), cell(99), cell(9)])
    first, second = str(caught.value).splitlines()
    assert first.startswith("train.batch=10: takes all of the 10 samples of seqlen=110, as ")
    assert second.startswith("train.batch=99: takes all of the 10 samples of seqlen=110, as ")
    assert len(check([cell(0), cell(9), cell(10, seed=1)])) == 3


def test_all_faults_at_once_one_line_each():
    with pytest.raises(UserError) as caught:
        check([run(seqlen=10_000_000), run(), run(seqlen=9000), run(model=Model(layer=99))])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("seqlen=10000000: ")
    assert lines[2] == "model.layer=99: tiny has layers 0 to 5"


def test_many_faults_are_cut_short_and_equal_ones_said_once():
    with pytest.raises(UserError) as caught:
        check([run(seqlen=9000 + i, rank=r) for i in range(14) for r in (1, 2)])
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 4 more"


def test_the_same_run_twice_is_one_cell():
    assert len(check([run(), run(), run(seed=1)])) == 2


def test_ranks_seeds_losses_and_rates_share_a_pack():
    runs = [
        run(1),
        run(16),
        run(seed=3),
        run(loss=MemftOtLoss()),
        run(train=Train(lr=1e-3, clip=0)),
        run(data=TextData()),
    ]
    (pack,) = packs_of(*runs)
    assert len(pack.cells) == 6
    assert pack.step_tokens == 6 * 32
    assert pack.tokens == 6 * 32 * 500


@pytest.mark.parametrize(
    "other",
    [
        run(train=Train(steps=499)),
        run(train=Train(log_every=3)),
        run(adapter=LinearAdapter()),
        run(adapter=LinearAdapter(dropout=0.1)),
        run(model=dataclasses.replace(CPU, layer=1)),
        run(model=dataclasses.replace(CPU, dtype="float64")),
        run(seqlen=100, data=PhonebookData()),
        # Less than half as long: mostly padding.
        run(seqlen=15),
    ],
)
def test_what_cannot_or_should_not_be_packed_together(other):
    assert len(packs_of(run(), other)) == 2


def test_packs_keep_within_the_budget():
    runs = [run(rank, seqlen) for rank in range(1, 9) for seqlen in (20, 33, 64, 100)]
    for budget in (64, 100, 500, 100_000):
        packs = packs_of(*runs, tokens=budget)
        assert sorted(c.id for p in packs for c in p.cells) == sorted(run_id(r) for r in runs)
        for pack in packs:
            assert pack.step_tokens <= budget or len(pack.cells) == 1
            assert len(pack.cells) <= MAX_CELLS
    assert len(packs_of(*runs, tokens=1)) == len(runs)


def test_a_pack_has_a_largest_number_of_cells():
    assert [len(p.cells) for p in packs_of(*(run(seed=s, seqlen=4) for s in range(70)))] == [
        MAX_CELLS,
        6,
    ]


def test_packs_of_one_model_come_one_after_the_other():
    """So that a base is loaded once."""
    other = dataclasses.replace(CPU, layer=2)
    packs = packs_of(*(run(seqlen=n, model=m) for n in (10, 40, 160) for m in (CPU, other)))
    models = [str(p.cells[0].run.model) for p in packs]
    assert len(packs) == 6
    assert models == sorted(models)


def test_nothing_to_do():
    assert make_packs([]) == []
    assert check([]) == []


def test_planning_does_not_import_torch():
    import subprocess
    from pathlib import Path

    code = (
        "import sys\nfrom pml_cli.launch.packing import check, make_packs\n"
        "from pml_cli.config.registry import declared\nfrom pml_cli.config.schema import Run\n"
        "names = ('random', 'text', 'mixed', 'phonebook', 'rule')\n"
        "make_packs(check([Run(data=declared('data')[name]()) for name in names]))\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_the_id_knows_what_can_change_a_result(tmp_path):
    same = [run(), run(model=Model(device="cuda:1")), run(model=Model(name="other"))]
    assert len({run_id(r).split("-")[-1] for r in same}) == 1
    others = [
        run(5),
        run(seqlen=33),
        run(seed=1),
        run(train=Train(lr=1e-3)),
        run(loss=MemftOtLoss()),
        run(data=RandomData(seed=1)),
    ]
    assert len({run_id(r) for r in (same[0], *others)}) == 7
    for name in ("a", "b"):
        (tmp_path / name).write_text("the same text")
    (tmp_path / "c").write_text("another text")
    a, b, c = (run_id(run(data=TextData(path=str(tmp_path / name)))) for name in "abc")
    assert a == b != c


def test_a_start_must_be_of_this_rank_and_kind(tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    tensors = {"base_model.model.x.lora_A.weight": np.zeros((2, 3), np.float32)}
    save_file(tensors, file, {"pml_kind": "mlp_block"})
    (cell,) = check([run(2, train=Train(start=str(file)))])
    assert cell.id != check([run(2)])[0].id

    moved = tmp_path / "elsewhere" / file.name
    moved.parent.mkdir()
    moved.write_bytes(file.read_bytes())
    # The same weights are the same run, wherever they lie.
    assert check([run(2, train=Train(start=str(moved)))])[0].id == cell.id

    for other, reason in (
        (run(4, train=Train(start=str(file))), "is of rank 2, not 4"),
        (run(2, train=Train(start=str(file)), adapter=LinearAdapter()), "is adapter=mlp_block"),
        (run(2, train=Train(start=__file__)), "must be the adapter_model.safetensors of a run"),
    ):
        with pytest.raises(UserError, match=reason):
            check([other])
