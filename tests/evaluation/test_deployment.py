"""Adapters rounded, merged and in bfloat16: against PEFT, the whole model, and planted margins."""

import numpy as np
import pytest
import torch
from support.adapters import random_bank, train

from pml_cli.config.schema import TINY, LinearAdapter, Model, Run, Train
from pml_cli.data.source import Sample
from pml_cli.data.sources.random import RandomData
from pml_cli.evaluation.conditions import BY_NAME, CONDITIONS
from pml_cli.evaluation.deployment import (
    MergedBank,
    bf16_bank,
    deploy,
    rounded_bank,
    rounded_base,
)
from pml_cli.evaluation.quantize import to_int4, to_int8
from pml_cli.evaluation.robustness import condition_row
from pml_cli.model.adapter_bank import stack
from pml_cli.model.loading import load_model
from pml_cli.training.scoring import PackInputs, score_cells, zero_adapters


@pytest.fixture(scope="module")
def recalling(tiny_base):
    """Four adapters that recall 12 random tokens each, with wide margins; and their samples."""
    settings = Train(steps=60, lr=4e-2)
    runs = [Run(rank=8, seqlen=12, data=RandomData(seed=s), train=settings) for s in range(4)]
    cells = train(tiny_base, runs)
    assert all(cell.final.correct.all() for cell in cells)
    return stack([cell.adapter for cell in cells]), [cell.samples for cell in cells]


def scaled_copies(bank, k, factors):
    """One adapter many times over, B multiplied by each factor."""
    copies = bank.select([k] * len(factors))
    for name, B in copies.B.items():
        copies.B[name] = torch.tensor(factors, dtype=B.dtype)[:, None, None] * B
    return copies


def test_a_margin_just_above_zero_flips_under_integers_and_a_large_one_does_not(
    tiny_base, recalling
):
    """Scaling an adapter down brings its least margin to 0; the rounded one may flip first."""
    bank, cells = recalling
    factors = np.linspace(0.05, 1, 150)
    flipped = 0
    for k in range(len(bank)):
        copies = scaled_copies(bank, k, factors)
        inputs = PackInputs(tiny_base, copies, [cells[k]] * len(factors))
        trained = score_cells(tiny_base, copies, inputs)
        rounded = score_cells(tiny_base, rounded_bank(copies, to_int4), inputs)

        # At full size the margins are large, and stay above 0.
        assert rounded[-1].margin.min() > 0
        close = [
            i
            for i, scores in enumerate(trained)
            if 0 < scores.margin.min() < 0.5 and rounded[i].margin.min() < 0
        ]
        for i in close:
            row = condition_row(rounded[i], trained[i])
            assert (row["kept_whole"], row["exact_match"]) == (0, 0)
            assert row["lost"] >= 1
            assert row["fall_worst"] > 0
        flipped += bool(close)
    assert flipped >= 1


def test_what_is_rounded_to_integers_has_a_scale_for_each_output_channel():
    """By output of what, is said of all of them."""
    rounded = [condition for condition in CONDITIONS if "int" in condition.name]
    assert len(rounded) == 4
    for condition in rounded:
        assert "by output channel" in condition.meaning


def test_an_outlier_in_an_output_channel_takes_the_others_with_it(tiny_base, recalling):
    """A row of B without effect (its column of A is 0), 1000 times as large: others become 0."""
    bank, cells = recalling
    planted = bank.select(range(len(bank)))
    planted.ranks = [rank + 1 for rank in bank.ranks]
    for name, A in bank.A.items():
        B = bank.B[name]
        planted.A[name] = torch.nn.functional.pad(A, (0, 1))
        planted.B[name] = torch.cat([B, 1000 * B.abs().amax(1, keepdim=True)], 1)

    inputs = PackInputs(tiny_base, planted, cells)

    def scores_under(condition):
        return score_cells(tiny_base, deploy(tiny_base, planted, BY_NAME[condition]), inputs)

    trained = score_cells(tiny_base, planted, inputs)
    untrained = score_cells(tiny_base, zero_adapters(planted, range(len(planted))), inputs)
    for k, scores in enumerate(scores_under("adapter_bf16")):
        assert condition_row(scores, trained[k])["kept_whole"] == 1
    for k, scores in enumerate(scores_under("adapter_int8")):
        assert condition_row(scores, trained[k])["kept_whole"] == 0
        np.testing.assert_allclose(scores.nll, untrained[k].nll, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("tiny", ["gate_proj", "up_proj", "down_proj", "q_proj"]),
        ("gpt2", ["c_fc", "c_attn"]),
        ("gpt_neox", ["dense"]),
    ],
)
def test_merged_is_unmerged(family, targets, tiny_base, model_folder):
    """Also where weights are stored (in, out) or have a bias; with ranks whose scales differ."""
    base = tiny_base
    if family != "tiny":
        base = load_model(Model(name=family, path=str(model_folder(family)), device="cpu"))
    bank = random_bank(base, LinearAdapter(targets=targets), [2, 3, 6])
    drawn = np.random.default_rng(1).integers(1, 90, (3, 30)).tolist()
    cells = [
        [
            Sample(prompt=(0,), target=tuple(tokens[:length])),
            Sample(prompt=(0, 5), target=tuple(tokens[:9])),
        ]
        for length, tokens in zip((30, 12, 20), drawn, strict=True)
    ]
    inputs = PackInputs(base, bank, cells)

    unmerged = score_cells(base, bank, inputs)
    merged = score_cells(base, MergedBank(base, bank), inputs)
    for ours, theirs in zip(merged, unmerged, strict=True):
        np.testing.assert_allclose(ours.nll, theirs.nll, atol=1e-5)
        np.testing.assert_allclose(ours.margin, theirs.margin, atol=1e-5)

    # Rounding is no rounding error.
    int8 = score_cells(base, MergedBank(base, bank, "int8"), inputs)
    differences = [abs(a.margin - b.margin).max() for a, b in zip(unmerged, int8, strict=True)]
    assert max(differences) > 1e-3


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-6), ("bfloat16", 1e-3)])
def test_merged_is_what_peft_merges(tmp_path, dtype, allowed):
    """Stored in the dtype of the base: what bfloat16 rounds away is lost there too."""
    import peft
    import transformers

    base = load_model(Model(dtype=dtype, device="cpu"))
    bank = random_bank(base, LinearAdapter(targets=["gate_proj", "down_proj"]), [3])
    bank.save(0, tmp_path, str(TINY))
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=dtype)
    model = peft.PeftModel.from_pretrained(model, tmp_path).merge_and_unload()
    for name, (merged_KIO, _) in MergedBank(base, bank).matrices.items():
        expected = model.get_submodule(name).weight
        torch.testing.assert_close(merged_KIO[0].T, expected, atol=allowed, rtol=0)


def test_bfloat16_is_that_of_the_whole_model(recalling):
    """Weights and arithmetic: logits of a model in bfloat16 with the adapter as PEFT casts it."""
    bank, cells = recalling
    base_bf16 = load_model(Model(dtype="bfloat16", device="cpu"))
    converted = bf16_bank(bank)
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.bfloat16}

    scores = score_cells(base_bf16, converted, PackInputs(base_bf16, bank, cells))
    for k, (sample,) in enumerate(cells):
        ids = torch.tensor([[*sample.prompt, *sample.target]])
        with torch.no_grad():
            hidden = base_bf16.full(ids[:, :-1], converted.select([k])).last_hidden_state
            assert hidden.dtype == torch.bfloat16
            logits = base_bf16.logits(hidden)[0, len(sample.prompt) - 1 :].float()
        nll = torch.nn.functional.cross_entropy(
            logits, torch.tensor(sample.target), reduction="none"
        )
        # Sums in another order: one bit of a logit of 20.
        np.testing.assert_allclose(scores[k].nll, nll.numpy(), atol=0.15)


def test_a_scale_that_is_no_bfloat16_number_goes_into_b(tiny_base):
    # The scale is 16 / 3.
    bank = random_bank(tiny_base, LinearAdapter(targets=["up_proj"]), [3])
    (name,) = bank.A
    exact = bank.A[name] @ (bank.B[name] * bank.scale[:, None, None])
    converted = bf16_bank(bank)
    scaled_B = converted.B[name].float() * converted.scale.float()[:, None, None]
    product = converted.A[name].float() @ scaled_B
    assert (product - exact).abs().max() < 0.01 * exact.abs().max()


def test_a_rounded_base_is_restored(tiny_base):
    original = {name: p.clone() for name, p in tiny_base.model.named_parameters()}
    down_proj = "model.layers.2.mlp.down_proj.weight"
    embeddings = "model.embed_tokens.weight"
    with rounded_base(tiny_base, "int8"):
        rounded = dict(tiny_base.model.named_parameters())
        expected = to_int8(original[down_proj], 1)
        torch.testing.assert_close(rounded[down_proj].data, expected, rtol=0, atol=0)
        assert not torch.equal(rounded[down_proj], original[down_proj])
        assert torch.equal(rounded[embeddings], original[embeddings])

    with pytest.raises(RuntimeError), rounded_base(tiny_base, "bfloat16"):
        expected = original[embeddings].bfloat16().float()
        assert torch.equal(tiny_base.head.weight_VD, expected)
        raise RuntimeError
    for name, parameter in tiny_base.model.named_parameters():
        assert torch.equal(parameter, original[name])
