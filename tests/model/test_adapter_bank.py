"""A bank of adapters: initial weights, what it adds, subsets, files, dropout."""

import pytest
import torch
from support.models import local, logits_of_cell, random_bank, random_ids

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter
from pml_cli.model.adapter_bank import AdapterBank, Dropout, Site, merged, stack
from pml_cli.model.loading import load_model

LINEAR = LinearAdapter(targets=["q_proj", "v_proj", "down_proj"], layers=[1, 2], alpha=12.0)
CPU = torch.device("cpu")


@pytest.mark.parametrize("adapter", [LINEAR, MlpBlockAdapter()])
def test_saved_equals_loaded(model_folder, tmp_path, adapter):
    model = load_model(local(model_folder("qwen3")))
    bank = random_bank(model, adapter, (2, 5))
    bank.save(0, tmp_path, "x")
    other = AdapterBank.initial(
        model.sites(adapter), adapter, ranks=[7, 2], seeds=[8, 9], dtype=torch.float32
    )
    untouched = {name: A[0].clone() for name, A in other.A.items()}
    other.load(1, tmp_path)

    for name in bank.sites:
        assert torch.equal(other.A[name][1, :, :2], bank.A[name][0, :, :2])
        assert torch.equal(other.B[name][1, :2], bank.B[name][0, :2])
        assert torch.equal(other.A[name][0], untouched[name])

    # The scale too.
    name, site = next(iter(bank.sites.items()))
    x = torch.randn(2, 6, site.inputs).repeat(2, 1, 1)
    torch.testing.assert_close(other.delta(name, x)[2:], bank.delta(name, x)[:2])


def test_delta_by_hand_and_hooks_are_removed():
    adapter = LinearAdapter(targets=["m"], alpha=6.0)
    bank = AdapterBank.initial(
        [Site(name="m", inputs=3, outputs=2)],
        adapter,
        ranks=[1, 3],
        seeds=[0, 1],
        dtype=torch.float64,
    )
    for k, rank in enumerate((1, 3)):
        bank.B["m"][k, :rank] = torch.randn(rank, 2, dtype=torch.float64)
    module = torch.nn.Linear(3, 2).double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)

    with bank.attached({"m": module}):
        adapted = module(x)

    # alpha / rank
    for k, scale in ((0, 6.0), (1, 2.0)):
        rows = slice(2 * k, 2 * k + 2)
        expected = module(x[rows]) + scale * x[rows] @ bank.A["m"][k] @ bank.B["m"][k]
        torch.testing.assert_close(adapted[rows], expected)
    assert torch.equal(module(x), torch.nn.functional.linear(x, module.weight, module.bias))


def test_initial_weights_are_kaiming_and_belong_to_the_seed_alone():
    sites = [Site(name="a", inputs=400, outputs=10), Site(name="b", inputs=50, outputs=10)]
    adapter = MlpBlockAdapter()
    bank = AdapterBank.initial(sites, adapter, ranks=[4, 8], seeds=[3, 4], dtype=torch.float32)
    alone = AdapterBank.initial(sites, adapter, ranks=[8], seeds=[4], dtype=torch.float32)

    for name, inputs in (("a", 400), ("b", 50)):
        A = bank.A[name]
        assert torch.equal(A[1], alone.A[name][0])
        assert not torch.equal(A[0, :, :4], A[1, :, :4])
        assert 0.95 / inputs**0.5 < A[1].abs().max() <= 1 / inputs**0.5
        assert A[1].std().item() == pytest.approx(1 / (3 * inputs) ** 0.5, rel=0.1)
        assert bank.B[name].abs().max() == 0
    assert bank.parameter_count(0) == 4 * (410 + 60)


@pytest.mark.parametrize(("rank", "tokens"), [(2, 3), (2, 20), (5, 3), (9, 20)])
def test_effective_parameters_are_the_degrees_of_freedom_of_what_the_adapter_adds(rank, tokens):
    """The rank of the Jacobian of X A B with respect to A and B."""
    site = Site(name="a", inputs=6, outputs=8)
    adapter = MlpBlockAdapter()
    bank = AdapterBank.initial([site], adapter, ranks=[rank], seeds=[0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(shape, generator=generator).double() for shape in ((6, rank), (rank, 8)))
    X = torch.randn(tokens, 6, generator=generator).double()

    of_A, of_B = torch.autograd.functional.jacobian(lambda A, B: X @ A @ B, (A, B))
    jacobian = torch.cat([of_A.flatten(2).flatten(0, 1), of_B.flatten(2).flatten(0, 1)], dim=1)
    freedom = int(torch.linalg.matrix_rank(jacobian))
    assert bank.effective_parameter_count(0, tokens) == freedom


def test_stack_joins_banks_of_different_ranks(model_folder):
    model = load_model(local(model_folder("qwen3")))
    ids = random_ids(model, 2)
    first = random_bank(model, LINEAR, (2,))
    second = random_bank(model, LINEAR, (7, 3))
    stacked = stack([first, second])

    assert stacked.ranks == [2, 7, 3]
    for k, (bank, index) in enumerate(((first, 0), (second, 0), (second, 1))):
        expected = logits_of_cell(model, ids, bank, index)
        torch.testing.assert_close(logits_of_cell(model, ids, stacked, k), expected)


def test_a_selection_is_a_copy(model_folder):
    model = load_model(local(model_folder("qwen3")))
    bank = random_bank(model, LINEAR, (2, 7))
    bank.requires_grad_().dropout = Dropout(0.5, [0, 1], [(1, 5), (1, 5)], CPU)
    selected = bank.select([1, 1])

    assert selected.ranks == [7, 7]
    assert selected.dropout is None
    assert not any(p.requires_grad for p in selected.parameters())
    name = next(iter(bank.sites))
    selected.A[name].zero_()
    assert bank.A[name].abs().max() > 0


def test_the_largest_weight_of_each_cell():
    bank = AdapterBank.initial(
        [Site(name="m", inputs=3, outputs=2)],
        MlpBlockAdapter(),
        ranks=[1, 1, 1],
        seeds=[0, 1, 2],
        dtype=torch.float64,
    )
    bank.B["m"][0, 0, 1] = -7
    bank.A["m"][2, 1, 0] = torch.nan
    largest = bank.largest_weights()
    assert largest[0] == 7
    assert largest[1] == bank.A["m"][1].abs().max()
    assert largest[2] != largest[2]


def test_dropout_preserves_the_mean_and_leaves_padding_alone():
    dropout = Dropout(0.25, [1, 2], [(2, 30), (3, 50)], CPU)
    x = torch.ones(2, 3 * 50, 64)
    dropped = dropout(x, (6, 50, 64)).view(2, 3, 50, 64)

    for cell in (dropped[0, :2, :30], dropped[1]):
        assert set(cell.unique().tolist()) <= {0.0, float(torch.tensor(4 / 3))}
        assert cell.mean().item() == pytest.approx(1, abs=0.05)
    assert (dropped[0, 2] == 1).all()

    alone = Dropout(0.25, [2], [(3, 50)], CPU)(x[1:], (3, 50, 64))
    assert torch.equal(alone.view(3, 50, 64), dropped[1])


def test_rewound_dropout_draws_the_same_and_then_goes_on():
    dropout = Dropout(0.5, [3], [(2, 10)], CPU)
    x = torch.ones(1, 20, 8)
    states = dropout.states()
    first = dropout(x, (2, 10, 8))
    with dropout.rewound(states):
        assert torch.equal(dropout(x, (2, 10, 8)), first)
    second = dropout(x, (2, 10, 8))

    reference = Dropout(0.5, [3], [(2, 10)], CPU)
    reference(x, (2, 10, 8))
    assert torch.equal(reference(x, (2, 10, 8)), second)


@pytest.mark.parametrize("adapter", [LINEAR, MlpBlockAdapter()])
def test_merged_adds_what_the_adapters_add(model_folder, tmp_path, adapter):
    model = load_model(local(model_folder("qwen3")))
    banks = [random_bank(model, adapter, (2, 5)), random_bank(model, adapter, (3, 1))]
    merger = merged(banks)
    # 2 and 3; as many columns as the widest of each bank.
    assert merger.ranks == [8, 8]
    for name, site in merger.sites.items():
        x = torch.randn(4, 6, site.inputs)
        summed = banks[0].delta(name, x) + banks[1].delta(name, x)
        torch.testing.assert_close(merger.delta(name, x), summed)

    # Saved and read again it is the same, by its scale too.
    merger.save(1, tmp_path, "x")
    again = AdapterBank.initial(
        model.sites(adapter), merger.settings, ranks=[8], seeds=[0], dtype=torch.float32
    )
    again.load(0, tmp_path)
    name, site = next(iter(merger.sites.items()))
    x = torch.randn(2, 6, site.inputs)
    torch.testing.assert_close(again.delta(name, x), merger.select([1]).delta(name, x))
