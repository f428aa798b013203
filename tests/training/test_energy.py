"""loss.keep: the gradient against autograd through x A B, alone and packed, interrupted and off."""

import dataclasses

import numpy as np
import pytest
import torch
from support.adapters import random_bank
from support.models import local, random_ids
from support.packs import train_packed

from pml_cli.config.request import load
from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model, Run, Train
from pml_cli.data.generic_text import generic_windows
from pml_cli.data.opened import source_of
from pml_cli.data.python_docs import held_out_text
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.data.windows import SHARED
from pml_cli.errors import UserError
from pml_cli.model.loading import load_model
from pml_cli.training import energy
from pml_cli.training.energy import SiteSums, factored
from pml_cli.training.keep import KeepPenalty
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.trainer import Cell, Trainer, TrainingObserver

ADAPTERS = {
    "block": MlpBlockAdapter(),
    "linear": LinearAdapter(targets=["q_proj", "o_proj", "down_proj"], layers=[1, 4], alpha=3.0),
}


@pytest.fixture(scope="module")
def float64_base():
    return load_model(Model(dtype="float64", device="cpu"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two files of a few windows each."""
    folder = tmp_path_factory.mktemp("generic")
    paths = []
    for i in range(2):
        paths.append(folder / f"{i}.txt")
        paths[i].write_text(held_out_text()[i * 6000 : (i + 1) * 6000], "utf-8")
    return [str(path) for path in paths]


def run_of(base, keep, **settings):
    loss = dataclasses.replace(settings.pop("loss", SftLoss()), keep=keep)
    loss.keep_text = settings.pop("text", None)
    train = Train(steps=8, log_every=4, lr=2e-2)
    settings = {"rank": 4, "seqlen": 12, "model": base.settings, "train": train} | settings
    return Run(loss=loss, **settings)


def cell_of(run):
    return Cell(run=run, samples=source_of(run).take(run.seqlen))


def energies(base, bank, windows):
    """|x A B|^2 / |h|^2 of every adapter in the plain model, by means without the first token."""
    ids = torch.tensor([[*window.prompt, *window.target] for window in windows])
    inputs, outputs = {}, {}

    def see(name):
        def hook(_module, args, output):
            inputs[name] = args[0]
            outputs[name] = output

        return hook

    handles = []
    for name in bank.sites:
        handles.append(base.modules[name].register_forward_hook(see(name)))
    layer = base.layers[base.layer]
    handles.append(layer.register_forward_hook(see("residual stream")))
    with torch.no_grad():
        base.model(input_ids=ids[:, :-1])
    for handle in handles:
        handle.remove()

    total = 0.0
    for name in bank.sites:
        x = inputs[name][:, 1:].flatten(0, 1)
        y = (x @ bank.A[name] @ bank.B[name]) * bank.scale[:, None, None]
        h = outputs["residual stream" if bank.is_block else name][:, 1:]
        total = total + y.square().sum(2).mean(1) / h.square().sum(2).mean()
    return total


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_gradient_is_autograds_through_the_adapters_output(float64_base, texts, kind):
    weights = [0.3, 0.0, 2.0]
    bank = random_bank(float64_base, ADAPTERS[kind], [2, 4, 3], scale=1, seed=1)
    runs = []
    for keep in weights:
        runs.append(run_of(float64_base, keep, adapter=ADAPTERS[kind], text=texts[0]))
    grads = [torch.zeros_like(parameter) for parameter in bank.parameters()]
    KeepPenalty(float64_base, bank, runs).add_gradient(bank, grads, 0, 1)

    bank.requires_grad_()
    expected_K = energies(float64_base, bank, generic_windows(runs[0]))
    objective = (expected_K * torch.tensor(weights, dtype=torch.float64)).sum()
    expected = torch.autograd.grad(objective, bank.parameters())
    sites = len(bank.sites)
    for k, rank in enumerate(bank.ranks):
        for i in range(sites):
            # A and B at the rank of the cell.
            for grad, other in (
                (grads[i][k, :, :rank], expected[i][k, :, :rank]),
                (grads[sites + i][k, :rank], expected[sites + i][k, :rank]),
            ):
                torch.testing.assert_close(grad, other, rtol=1e-6, atol=1e-9)
                assert grad.any() == (weights[k] > 0)
    assert not any(grad[0, :, 2:].any() for grad in grads[:sites])


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_cell_has_the_same_penalty_bit_for_bit_packed_as_alone(tiny_base, texts, kind):
    ranks = [2, 7, 4]
    bank = random_bank(tiny_base, ADAPTERS[kind], ranks, scale=1, seed=1)
    runs = []
    for i, keep in enumerate((0.3, 0.1, 2.0)):
        runs.append(run_of(tiny_base, keep, adapter=ADAPTERS[kind], text=texts[i % 2]))
    packed = [torch.zeros_like(parameter) for parameter in bank.parameters()]
    KeepPenalty(tiny_base, bank, runs).add_gradient(bank, packed, 0, 1)

    for k, rank in enumerate(ranks):
        alone = bank.select([k])
        alone.A = {name: A[:, :, :rank].contiguous() for name, A in alone.A.items()}
        alone.B = {name: B[:, :rank].contiguous() for name, B in alone.B.items()}
        grads = [torch.zeros_like(parameter) for parameter in alone.parameters()]
        KeepPenalty(tiny_base, alone, [runs[k]]).add_gradient(alone, grads, 0, 1)
        for whole, grad in zip(packed, grads, strict=True):
            assert torch.equal(whole[k, : grad.shape[1], : grad.shape[2]], grad[0])
            assert grad.any()


LOSSES = [SftLoss(), MemftOtLoss(), MemftSwLoss(window=3, patience=2), MemftMarginLoss()]


def test_the_penalty_changes_its_cells_and_no_other(float64_base, texts):
    """Every loss, packed with cells without penalty; those keep every bit."""
    plain = [run_of(float64_base, 0.0, loss=loss, seed=i) for i, loss in enumerate(LOSSES)]
    held = []
    for i, loss in enumerate(LOSSES):
        held.append(run_of(float64_base, 22.0, loss=loss, seed=i, text=texts[0]))
    cells = train_packed(float64_base, [cell_of(run) for run in [*plain, *plain]])
    mixed = train_packed(float64_base, [cell_of(run) for run in [*plain, *held]])
    for i, cell in enumerate(cells[:4]):
        np.testing.assert_array_equal(mixed[i].final.nll, cell.final.nll)
        assert abs(mixed[i + 4].final.nll - cell.final.nll).max() > 1e-5

        # The logged loss is the task's: of sft the mean nll.
        first_loss = mixed[i + 4].curve[0]["loss"].iloc[0]
        assert first_loss == pytest.approx(cell.curve[0]["loss"].iloc[0], abs=1e-8)

    # Packed as alone.
    for i, run in enumerate(held[:2]):
        (alone,) = train_packed(float64_base, [cell_of(run)])
        np.testing.assert_allclose(mixed[i + 4].final.nll, alone.final.nll, rtol=0, atol=1e-8)


def test_the_penalty_lowers_the_energy(float64_base, texts):
    energy_of = {}
    for keep in (0.0, 200.0, 20_000.0):
        run = run_of(float64_base, keep, text=texts[0], train=Train(steps=15, lr=4e-2))
        (cell,) = train_packed(float64_base, [cell_of(run)])
        windows = generic_windows(run_of(float64_base, 1.0, text=texts[0]))
        energy_of[keep] = energies(float64_base, cell.adapter, windows).item()
    assert energy_of[20_000.0] < energy_of[200.0] / 3 < energy_of[0.0] / 9


def test_interrupted_equals_undisturbed_bit_for_bit(tiny_base, texts):
    """Also where a cell without penalty comes first and leaves before."""
    train = Train(steps=24, lr=5e-2, log_every=3, stop="recalled", stop_margin=0.0)
    runs = [
        run_of(tiny_base, 0.0, seqlen=2, rank=8, train=train),
        run_of(tiny_base, 22.0, seqlen=40, seed=1, train=train, text=texts[0]),
    ]

    class State(TrainingObserver):
        trainer = None
        state = None

        def before_step(self, step):
            if step == 20:
                self.state = self.trainer.state(step)

    cells = [cell_of(run) for run in runs]
    observer = State()
    observer.trainer = Trainer(tiny_base, cells, observer)
    observer.trainer.train()
    assert cells[0].steps_run < 20

    resumed = [cell_of(run) for run in runs]
    Trainer(tiny_base, resumed).train(observer.state)
    np.testing.assert_array_equal(resumed[1].final.nll, cells[1].final.nll)
    for parameter, other in zip(
        resumed[1].adapter.parameters(), cells[1].adapter.parameters(), strict=True
    ):
        assert torch.equal(parameter, other)


def test_generic_text_shares_nothing_with_the_target(tmp_path):
    text = tmp_path / "documentation.txt"
    text.write_text(held_out_text(), "utf-8")
    loss = SftLoss(keep=1.0, keep_text=str(text))
    run = Run(seqlen=900, data=TextData(), loss=loss)
    (sample,) = source_of(run).take(900)
    target = sample.target
    learned = {target[i : i + SHARED] for i in range(len(target) - SHARED + 1)}
    windows = generic_windows(run)
    for window in windows:
        for i in range(len(window.target) - SHARED + 1):
            assert window.target[i : i + SHARED] not in learned
    everything = generic_windows(Run(data=RandomData(), loss=loss))
    assert 0 < len(windows) < len(everything)
    assert generic_windows(Run(data=RandomData())) == ()


def test_a_text_that_is_all_target_is_refused(tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("A text that is shorter than one window, and all there is of it, no more.")
    loss = SftLoss(keep=1.0, keep_text=str(file))
    with pytest.raises(UserError, match=r"loss\.keep=1: the generic text has no window beside"):
        generic_windows(Run(seqlen=20, data=TextData(path=str(file)), loss=loss))
    bare = {"model_type": "gpt2", "vocab_size": 50, "n_layer": 1, "n_embd": 8, "n_head": 1}
    model = Model(name="bare", weights="random", architecture=bare)
    with pytest.raises(UserError, match="has no tokenizer, which generic text needs"):
        generic_windows(Run(model=model, loss=SftLoss(keep=1.0)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("keep=-1", "loss.keep=-1: must be at least 0 and finite"),
        ("keep=inf", "loss.keep=inf: must be at least 0 and finite"),
        ("keep=nan", "loss.keep=nan: must be at least 0 and finite"),
        ("keep_text=none.txt", "loss.keep_text=none.txt: no such file"),
    ],
)
@pytest.mark.parametrize("loss", ["sft", "memft_margin"])
def test_a_bad_weight_or_text_is_named(loss, setting, message):
    with pytest.raises(UserError) as error:
        load("probe", [f"loss={loss}", f"loss.{setting}"])
    assert message in str(error.value)


def test_a_factored_moment_is_near_the_whole_one():
    """Exact where the rest is alike in all directions, and where all directions are kept."""
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))[0]
    squares = torch.cat([torch.linspace(50, 3, 12), torch.ones(48)]).double()
    C = U @ torch.diag(squares) @ U.T
    A = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(factored(C, 12) @ A, C @ A, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(factored(C, 44) @ A, C @ A, rtol=1e-8, atol=1e-8)

    # Power is kept, and so is the mean over all directions.
    half = factored(C, 6)
    identity = torch.eye(60, dtype=torch.float64)
    assert (half @ identity).trace() == pytest.approx(C.trace())


def test_wide_sites_are_penalised_by_their_main_directions(tiny_base, texts, monkeypatch):
    """With 90 of them about as by the whole moments; site by site; packed as alone."""
    adapter = ADAPTERS["linear"]
    bank = random_bank(tiny_base, adapter, [2, 4], scale=1, seed=1)
    run = run_of(tiny_base, 2.0, adapter=adapter, text=texts[0])

    def penalty_of(bank):
        energy._latest.clear()
        grads = [torch.zeros_like(parameter) for parameter in bank.parameters()]
        KeepPenalty(tiny_base, bank, [run] * len(bank)).add_gradient(bank, grads, 0, 1)
        return grads

    whole = penalty_of(bank)
    monkeypatch.setattr(energy, "WIDEST_WHOLE", 100)
    monkeypatch.setattr(energy, "MOMENT_NUMBERS", 40_000)
    monkeypatch.setattr(energy, "MAIN_DIRECTIONS", 90)
    for grad, other in zip(penalty_of(bank), whole, strict=True):
        assert 0 < (grad - other).norm() < 0.25 * other.norm()

    monkeypatch.setattr(energy, "MAIN_DIRECTIONS", 16)
    packed = penalty_of(bank)
    for k in range(2):
        for grad, other in zip(penalty_of(bank.select([k])), packed, strict=True):
            assert torch.equal(grad[0], other[k])


def test_where_a_norm_follows_the_mlp(model_folder):
    """The energy is about the share that the stream moves by; position 0 has no say in it."""
    base = load_model(local(model_folder("gemma2"), dtype="float64"))
    bank = random_bank(base, MlpBlockAdapter(), [3], scale=1e-4)
    ids = random_ids(base, 8, 20)
    streams = []
    layer = base.layers[base.layer]
    handle = layer.register_forward_hook(lambda *called: streams.append(called[-1][:, 1:]))
    base.full(ids)
    base.full(ids, bank)
    handle.remove()
    plain, adapted = streams
    moved = (adapted - plain).square().sum() / plain.square().sum()

    prefix = base.prefix(ids, bank)
    prefix.mlp_out[:, 0] *= 1e6
    sums = SiteSums(prefix.entry.shape[2], prefix.entry)
    sums.add(prefix.entry, base.block_output(prefix, bank), 20)
    (site,) = bank.sites
    AB = bank.scale[0] * bank.A[site][0] @ bank.B[site][0]
    predicted = (AB * (sums.relative_moment() @ AB)).sum()
    # The gain of the norm is its mean over tokens.
    assert 0.4 < predicted / moved < 2.5
