"""What outlasts rounding and merging: planted losses, hand-computed rounding, merged against unmerged, the command."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pml_cli import cli
from pml_cli.config.dump import to_yaml
from pml_cli.config.load import read_run
from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.source import Sample
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.data.sources.mixed import MixedData
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.errors import UserError
from pml_cli.evaluation.conditions import BY_NAME, CONDITIONS
from pml_cli.evaluation.deployment import (
    Forced,
    MergedBank,
    deployed,
    half,
    rounded_bank,
    rounded_base,
)
from pml_cli.evaluation.eval_text import SHARED, learned, random_pool, text_pool
from pml_cli.evaluation.forgetting import damages, divergence
from pml_cli.evaluation.quantize import to_bfloat16, to_int4, to_int8
from pml_cli.evaluation.robustness import free_row, offenders, row
from pml_cli.model.adapter_bank import AdapterBank, stack
from pml_cli.model.loading import load_model
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.scores import Scores
from pml_cli.training.trainer import Cell, train_pack

# -- rounding


def test_integers_are_those_of_the_hand_computed_scale():
    """Output channels are columns where dimension 0 is summed over: scales 1, 0.01 (of 127) and, for zeros, none."""
    weight = torch.tensor(
        [[127.0, 1.27, 0.0], [0.4, -0.5, 0.0], [-2.6, 0.016, 0.0], [63.5, 0.0, 0.0]]
    )
    expected = torch.tensor(
        [[127.0, 1.27, 0.0], [0.0, -0.5, 0.0], [-3.0, 0.02, 0.0], [64.0, 0.0, 0.0]]
    )
    torch.testing.assert_close(to_int8(weight, 0), expected)  # 63.5 goes to the even neighbour
    torch.testing.assert_close(to_int8(weight.T.contiguous(), 1), expected.T)
    four = torch.tensor([[7.0, 3.4, -3.6, 0.5], [0.7, 0.34, 0.05, -0.06]])
    torch.testing.assert_close(
        to_int4(four, 1), torch.tensor([[7.0, 3, -4, 0], [0.7, 0.3, 0.0, -0.1]])
    )
    stacked = torch.stack([weight, 2 * weight])
    torch.testing.assert_close(
        to_int8(stacked, 1), torch.stack([expected, 2 * expected])
    )  # each cell by itself


def test_bfloat16_keeps_eight_significant_bits():
    weight = torch.tensor([1 + 2**-7, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159])
    assert to_bfloat16(weight, 0).tolist() == [1 + 2**-7, 1.0, 1 + 2**-6, -3.140625]


# -- banks and bases


@pytest.fixture(scope="module")
def recalling(tiny_base):
    """Four adapters that recall 12 random tokens each, with wide margins."""
    runs = [
        Run(rank=8, seqlen=12, data=RandomData(seed=s), train=Train(steps=60, lr=4e-2))
        for s in range(4)
    ]
    cells = [Cell(run=run, samples=source_of(run).take(12)) for run in runs]
    train_pack(tiny_base, cells)
    assert all(cell.final.correct.all() for cell in cells)
    return stack([cell.adapter for cell in cells]), [cell.samples for cell in cells]


def weakened(bank, k, shares):
    """One adapter many times over, B multiplied by each share."""
    part = bank.select([k] * len(shares))
    part.B = {
        name: torch.tensor(shares, dtype=B.dtype)[:, None, None] * B for name, B in part.B.items()
    }
    return part


def test_a_margin_just_above_zero_flips_under_integers_and_a_large_one_does_not(
    tiny_base, recalling
):
    """Weakening an adapter brings its least margin down to 0; where the rounded one comes there first, it flips."""
    bank, cells = recalling
    shares, flipped = np.linspace(0.05, 1, 150), 0
    for k in range(len(bank)):
        several, samples = weakened(bank, k, shares), [cells[k]] * len(shares)
        forced = Forced(tiny_base, several, samples)
        trained, rounded = forced.scores(several), forced.scores(rounded_bank(several, to_int4))
        assert rounded[-1].margin.min() > 0  # of the whole adapter the margins are large, and stay
        small = [
            i
            for i, one in enumerate(trained)
            if 0 < one.margin.min() < 0.5 and rounded[i].margin.min() < 0
        ]
        for i in small:
            found = row(rounded[i], trained[i])
            assert (found["kept_whole"], found["exact_match"]) == (0, 0)
            assert found["lost"] >= 1 and found["fall_worst"] > 0
        flipped += bool(small)
    assert flipped >= 1


def test_an_outlier_in_an_output_channel_takes_the_rest_with_it(tiny_base, recalling):
    """A row of B that does nothing (its column of A is 0) but is 1000 times as large: int8 rounds all the others to 0."""
    bank, cells = recalling
    A, B = ({name: M.clone() for name, M in parts.items()} for parts in (bank.A, bank.B))
    planted = bank.select(range(len(bank)))
    planted.ranks = [rank + 1 for rank in bank.ranks]
    planted.A = {name: torch.nn.functional.pad(M, (0, 1)) for name, M in A.items()}
    planted.B = {
        name: torch.cat([M, 1000 * M.abs().amax(1, keepdim=True)], 1) for name, M in B.items()
    }
    forced = Forced(tiny_base, planted, cells)
    trained = forced.scores(planted)
    for k, scores in enumerate(
        forced.scores(deployed(tiny_base, planted, BY_NAME["adapter_bf16"]))
    ):
        assert row(scores, trained[k])["kept_whole"] == 1
    base = forced.scores(weakened_to_nothing(planted))
    for k, scores in enumerate(
        forced.scores(deployed(tiny_base, planted, BY_NAME["adapter_int8"]))
    ):
        assert row(scores, trained[k])["kept_whole"] == 0
        np.testing.assert_allclose(scores.nll, base[k].nll, atol=1e-5)


def weakened_to_nothing(bank):
    part = bank.select(range(len(bank)))
    part.B = {name: torch.zeros_like(B) for name, B in part.B.items()}
    return part


def linear_bank(base, kind, ranks, seed=5):
    bank = AdapterBank.initial(
        base.sites(kind), kind, ranks=ranks, seeds=list(range(len(ranks))), dtype=base.adapter_dtype
    )
    generator = torch.Generator().manual_seed(seed)
    bank.B = {
        name: 0.1 * torch.randn(B.shape, generator=generator).to(B.dtype)
        for name, B in bank.B.items()
    }
    for k, rank in enumerate(ranks):  # what lies beyond a cell's rank is zero
        for B in bank.B.values():
            B[k, rank:] = 0
    return bank


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("tiny", ["gate_proj", "up_proj", "down_proj", "q_proj"]),
        ("gpt2", ["c_fc", "c_attn"]),
        ("gpt_neox", ["dense"]),
    ],
)
def test_merged_is_unmerged(family, targets, tiny_base, model_folder):
    """Also where weights are stored (in, out) or have a bias; several ranks, whose scales differ, at once."""
    base = (
        tiny_base
        if family == "tiny"
        else load_model(Model(name=family, path=str(model_folder(family)), device="cpu"))
    )
    kind = LinearAdapter(targets=targets)
    bank = linear_bank(base, kind, [2, 3, 6])
    drawn = np.random.default_rng(1).integers(1, 90, (3, 30)).tolist()
    cells = [
        [Sample((0,), tuple(d[:n])), Sample((0, 5), tuple(d[:9]))]
        for n, d in zip((30, 12, 20), drawn, strict=True)
    ]
    forced = Forced(base, bank, cells)
    apart, merged = forced.scores(bank), forced.scores(MergedBank(base, bank))
    for one, other in zip(apart, merged, strict=True):
        np.testing.assert_allclose(other.nll, one.nll, atol=1e-5)
        np.testing.assert_allclose(other.margin, one.margin, atol=1e-5)
    coarse = forced.scores(MergedBank(base, bank, "int8"))
    assert (
        max(abs(a.margin - b.margin).max() for a, b in zip(apart, coarse, strict=True)) > 1e-3
    )  # it was rounded


def test_merged_is_what_peft_merges(tmp_path, tiny_base):
    import peft
    import transformers

    from pml_cli.config.schema import TINY

    bank = linear_bank(tiny_base, LinearAdapter(targets=["gate_proj", "down_proj"]), [3])
    bank.save(0, tmp_path, str(TINY))
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
    model = peft.PeftModel.from_pretrained(model, tmp_path).merge_and_unload()
    for name, (merged_KIO, _) in MergedBank(tiny_base, bank).matrices.items():
        torch.testing.assert_close(
            merged_KIO[0].T, model.get_submodule(name).weight, atol=1e-6, rtol=0
        )


def test_bfloat16_is_that_of_the_whole_model(tiny_base, recalling):
    """Weights and arithmetic: the same logits as from a model in bfloat16 with the adapter cast as PEFT casts it."""
    bank, cells = recalling
    lower = load_model(Model(dtype="bfloat16", device="cpu"))
    cast = half(bank)
    assert {A.dtype for A in [*cast.A.values(), *cast.B.values()]} == {torch.bfloat16}
    scores = Forced(lower, bank, cells).scores(cast)
    for k, (sample,) in enumerate(cells):
        ids = torch.tensor([[*sample.prompt, *sample.target]])
        with torch.no_grad():
            hidden = lower.full(ids[:, :-1], cast.select([k])).last_hidden_state
            assert hidden.dtype == torch.bfloat16
            logits = lower.logits(hidden)[0, len(sample.prompt) - 1 :].float()
        nll = torch.nn.functional.cross_entropy(
            logits, torch.tensor(sample.target), reduction="none"
        )
        np.testing.assert_allclose(
            scores[k].nll, nll.numpy(), atol=0.15
        )  # sums in another order: one bit of a logit of 20
    linear = linear_bank(
        tiny_base, LinearAdapter(targets=["up_proj"]), [3]
    )  # scale 16 / 3 is no bfloat16
    (name,) = linear.A
    exact = linear.A[name] @ (linear.B[name] * linear.scale[:, None, None])
    cast = half(linear)
    found = cast.A[name].float() @ (cast.B[name].float() * cast.scale.float()[:, None, None])
    assert (found - exact).abs().max() < 0.01 * exact.abs().max()


def test_a_rounded_base_is_put_back(tiny_base):
    before = {name: p.clone() for name, p in tiny_base.model.named_parameters()}
    down = "model.layers.2.mlp.down_proj.weight"
    with rounded_base(tiny_base, "int8"):
        inside = dict(tiny_base.model.named_parameters())
        torch.testing.assert_close(inside[down].data, to_int8(before[down], 1), rtol=0, atol=0)
        assert not torch.equal(inside[down], before[down])
        assert torch.equal(inside["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    with pytest.raises(RuntimeError), rounded_base(tiny_base, "bfloat16"):
        assert torch.equal(
            tiny_base.head.weight_VD, before["model.embed_tokens.weight"].bfloat16().float()
        )
        raise RuntimeError
    assert all(torch.equal(p, before[name]) for name, p in tiny_base.model.named_parameters())


# -- damage


def test_divergence_is_torch_s():
    torch.manual_seed(0)
    p, q = torch.randn(2, 7, 11, dtype=torch.float64)
    theirs = torch.nn.functional.kl_div(
        q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    torch.testing.assert_close(divergence(p, q), theirs)
    assert torch.equal(divergence(p, p), torch.zeros(7, dtype=torch.float64))
    hand = divergence(
        torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    )  # (1/2, 1/2) against (3/4, 1/4)
    assert hand.item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)


def test_damage_is_that_of_the_whole_model_and_a_zero_adapter_does_none():
    base = load_model(Model(dtype="float64", device="cpu"))
    kind = MlpBlockAdapter()
    bank = AdapterBank.initial(
        base.sites(kind), kind, ranks=[2, 4, 3], seeds=[0, 1, 2], dtype=torch.float64
    )
    bank.B = {
        name: 3 * torch.randn(B.shape, generator=torch.Generator().manual_seed(1)).double()
        for name, B in bank.B.items()
    }
    for B in bank.B.values():
        B[1] = 0
    for k, rank in enumerate(bank.ranks):
        for B in bank.B.values():
            B[k, rank:] = 0
    texts = text_pool(Model(), None).windows[:3]
    cells = [[texts[0], Sample(texts[1].prompt, texts[1].target[:40])], [texts[2]], []]
    found = damages(base, bank, cells)
    assert found[2] == {"tokens": 0, "base_loss": None, "loss": None, "kl": None, "changed": None}
    assert found[1]["kl"] == pytest.approx(0, abs=1e-12)
    assert found[1]["loss"] == pytest.approx(found[1]["base_loss"], abs=1e-12)
    assert found[1]["changed"] == 0
    before, after, targets = [], [], []
    for sample in cells[0]:
        ids = torch.tensor([[*sample.prompt, *sample.target]])
        for logits, adapter in ((before, None), (after, bank.select([0]))):
            with torch.no_grad():
                logits.append(base.logits(base.full(ids[:, :-1], adapter).last_hidden_state[0]))
        targets += sample.target
    before, after = torch.cat(before), torch.cat(after)
    kl = torch.nn.functional.kl_div(
        after.log_softmax(1), before.log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert found[0]["tokens"] == len(targets) == 296
    assert found[0]["kl"] == pytest.approx(float(kl), rel=1e-9)
    assert found[0]["loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(after, torch.tensor(targets))), rel=1e-9
    )
    assert found[0]["changed"] == pytest.approx(
        float((before.argmax(1) != after.argmax(1)).double().mean())
    )
    assert found[0]["kl"] > 0.01


@pytest.mark.parametrize("data", [TextData(), TextData(seed=3), MixedData(seed=1)], ids=repr)
def test_damage_is_looked_for_in_text_that_the_run_has_not_seen(data):
    run = Run(seqlen=900, data=data)
    samples = source_of(run).take(900)
    windows = text_pool(run.model, None).apart_from(learned(run, samples), 2000)
    assert sum(len(w.target) for w in windows) == 2000
    plain = source_of(Run(data=TextData(seed=data.seed))).take(900)[0].target
    seen = {plain[i : i + SHARED] for i in range(len(plain) - SHARED + 1)}
    assert all(
        w.target[i : i + SHARED] not in seen
        for w in windows
        for i in range(len(w.target) - SHARED + 1)
    )
    again = text_pool(run.model, None).apart_from(learned(run, samples), 2000)
    assert windows == again  # the same for every loss: pairs stay pairs


def test_texts_of_other_sizes(tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("A text that is shorter than one window, and all there is.")
    (window,) = text_pool(Model(), str(file)).apart_from([], 2000)
    assert 5 < len(window.target) < 40
    assert text_pool(Model(), str(file)).apart_from([window.target], 2000) == []
    short = list(window.target[5:10])  # a fact shorter than the 16 tokens that are looked for else
    assert text_pool(Model(), str(file)).apart_from([short], 2000) == []
    assert sum(len(w.target) for w in random_pool(Model(), 700).apart_from([], 700)) == 700
    assert random_pool(Model(), 700).apart_from([], 0) == []
    bare = Model(name="bare", weights="random", architecture={"vocab_size": 50, "num_hidden_layers": 1, "hidden_size": 8,
                 "max_position_embeddings": 64, "model_type": "llama"})  # fmt: skip
    assert not text_pool(bare, None).windows and "no tokenizer" in text_pool(bare, None).reason
    assert (
        max(len(w.prompt) + len(w.target) for w in random_pool(bare, 100).apart_from([], 100)) <= 64
    )
    with pytest.raises(UserError, match=r"^text="):
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        text_pool(Model(), str(tmp_path / "binary"))


# -- what is counted


def scores(nll, margin, argmax, target=(1, 1, 1), sample=(0, 0, 0)):
    position = np.array([list(sample[:i]).count(s) for i, s in enumerate(sample)], np.int32)
    return Scores(
        sample=np.array(sample, np.int32),
        position=position,
        token_id=np.array(target, np.int32),
        nll=np.array(nll, float),
        margin=np.array(margin, float),
        argmax_id=np.array(argmax, np.int32),
    )


def test_what_is_lost_is_counted_by_hand():
    trained = scores(
        [0.1, 0.6, 2.0, 0.2], [3.0, 0.4, -1.0, 2.0], [1, 1, 5, 1], (1, 1, 1, 1), (0, 0, 1, 1)
    )
    found = scores(
        [0.2, 0.9, 1.0, 0.2], [2.5, -0.1, 0.5, 2.0], [1, 7, 1, 1], (1, 1, 1, 1), (0, 0, 1, 1)
    )
    counted = row(found, trained)
    assert (counted["lost"], counted["won"], counted["lost_above"], counted["violations"]) == (
        1,
        1,
        1,
        0,
    )
    assert counted["kept_whole"] == 0  # sample 0 was recalled, sample 1 was not
    assert counted["exact_match"] == 0.5
    assert counted["fall_worst"] == pytest.approx(0.5)
    assert counted["shift_rms"] == pytest.approx(math.sqrt((0.25 + 0.25 + 0) / 3))
    assert row(trained, trained)["kept_whole"] == 1


def test_offenders_have_their_cause():
    """Position 0: the hidden states; 1: a tie of rounded logits; 2: right by teacher forcing, lost in free decoding."""
    samples = [Sample((0,), (1, 1, 1))]
    trained = scores([0.1, 0.3, 0.2], [2.0, 0.01, 1.5], [1, 1, 1])
    found = scores([0.9, 0.694, 0.3], [-0.2, 0.0, 1.0], [8, 0, 1])
    precise = scores([0.9, 0.69, 0.3], [-0.2, 0.004, 1.0], [8, 1, 1])
    told = offenders(samples, trained, found, precise, None)
    assert [(o["position"], o["decoded_id"]) for o in told] == [(0, 8), (1, 0)]
    assert "hidden states" in told[0]["cause"] and "tie" in told[1]["cause"]
    assert told[1]["p_trained"] == pytest.approx(math.exp(-0.3)) and told[1]["margin"] == 0
    right = scores([0.1, 0.3, 0.2], [2.0, 0.5, 1.5], [1, 1, 1])
    (one,) = offenders(samples, trained, right, right, [[1, 1, 9]])
    assert (one["position"], one["decoded_id"]) == (2, 9) and "cache" in one["cause"]
    assert free_row(samples, right, [[1, 1, 9]]) == {"free_exact_match": 0, "violations": 1}
    unsure = scores(
        [0.1, 0.3, 0.9], [2.0, 0.5, 0.1], [1, 1, 1]
    )  # p below one half promised nothing
    assert free_row(samples, unsure, [[1, 1, 9]]) == {"free_exact_match": 0, "violations": 0}


# -- reading runs


@pytest.mark.parametrize(
    "run",
    [
        Run(),
        Run(
            rank=3,
            seed=2,
            data=PhonebookData(digits=4),
            adapter=LinearAdapter(layers=[1, 2]),
            loss=MemftMarginLoss(margin=1.5),
        ),
        Run(
            data=MixedData(random_share=0.25),
            train=Train(epochs=9, curriculum=[2, 4]),
            model=Model(layer=1),
        ),
        Run(data=JsonlData(path="facts.jsonl")),
    ],
    ids=lambda run: run.data.source,
)
def test_a_run_is_read_back_as_it_was(run, tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert read_run(tmp_path / "config.yaml") == run


def test_a_config_that_is_none_is_said(tmp_path):
    for text in ("rank: 3", "[", "rank: 3\nseqlen: 2\nseed: 0\nmodel: {colour: red}"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match="not the settings of a run") as told:
            read_run(tmp_path / "config.yaml")
        assert "\n" not in str(told.value)


# -- the command


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Four runs of one text with mlp_block adapters, a linear one, a phone book: trained by the command line."""
    out = tmp_path_factory.mktemp("runs")
    common = ["train.steps=40", "train.lr=0.04", "train.decode=false"]
    for words in (
        ["loss=sft,memft_margin", "rank=2,6", "seqlen=12", f"out={out}/block"],
        ["adapter=linear", "rank=3", "seqlen=12", f"out={out}/linear"],
        ["data=phonebook", "data.digits=3", "rank=8", "seqlen=40", f"out={out}/book"],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["sweep", *words, *common])
        assert not stop.value.code
    return out


def pml(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_lasting_measures_every_run_once(swept, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    words = [
        "lasting",
        str(swept / "block"),
        str(swept / "linear"),
        f"out={swept}/report",
        "tokens=100",
    ]
    code, text, _ = pml(capsys, *words)
    assert code == 0
    assert "not mergeable" in text and "5 of them measured now" in text
    table = pd.read_csv(swept / "report" / "lasting.csv")
    assert len(table) == 5 * len(CONDITIONS)
    trained = table[table["condition"] == "trained"].set_index("id")
    for id_, one in trained.iterrows():
        result = json.loads((Path(one["folder"]) / "result.json").read_text())
        assert one["token_accuracy"] == pytest.approx(result["token_accuracy"], abs=1e-9)
        assert one["final_loss"] == pytest.approx(result["final_loss"], abs=1e-5)
        assert one["text_tokens"] == one["random_tokens"] == 100
        assert one["text_kl"] > 0 and one["fall_worst"] == 0, id_
    status = table.groupby(["adapter", "condition"])["status"].first()
    assert status["mlp_block", "merged"] == "not mergeable"
    assert (status["linear"] == "measured").all()
    merged = table[(table["adapter"] == "linear") & (table["condition"] == "merged")].set_index(
        "id"
    )
    np.testing.assert_allclose(
        merged["final_loss"], trained.loc[merged.index, "final_loss"], atol=1e-5
    )
    content = json.loads((swept / "report" / "lasting.json").read_text())
    assert {(row["method"], row["condition"]) for row in content["comparison"]} >= {
        ("memft_margin", "bf16")
    }
    for name in ("mlp_block", "linear"):
        assert (swept / "report" / f"lasting-tiny-random-{name}.png").stat().st_size > 20_000
    before = (swept / "report" / "lasting.csv").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(
            "pml_cli.evaluation.robustness.measure", lambda *_: pytest.fail("measured again")
        )
        code, text, _ = pml(capsys, *words, "figures=false", "--json")
    assert code == 0 and json.loads(text)["runs"] == content["runs"]
    assert (swept / "report" / "lasting.csv").read_bytes() == before
    _, text, _ = pml(
        capsys,
        "lasting",
        str(swept / "linear"),
        f"out={swept}/report",
        "tokens=0",
        "decode=false",
        "figures=false",
    )
    assert "1 of them measured now" in text  # other settings are another measurement
    assert "no forgetting measured" in text
    known = {
        one["id"] for one in json.loads((swept / "report" / "lasting.json").read_text())["runs"]
    }
    assert known == {one["id"] for one in content["runs"]}  # what was not asked for now is kept


def test_several_samples_a_run(swept, capsys):
    code, _, _ = pml(capsys, "lasting", str(swept / "book"), "tokens=50", "figures=false")
    assert code == 0
    table = pd.read_csv(swept / "book" / "lasting.csv").set_index("condition")
    assert table["samples"].max() > 3
    result = json.loads(next((swept / "book").glob("*/result.json")).read_text())
    assert table.loc["trained", "exact_match"] == pytest.approx(result["exact_match"])
    assert table["first_failure"].isna().all()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda folder: [p.unlink() for p in (folder / "adapter").iterdir()],
            "no adapter/ in this run's folder",
        ),
        (lambda folder: (folder / "config.yaml").unlink(), "No such file"),
        (lambda folder: (folder / "env.json").write_text("{}"), "train this run again"),
        (
            lambda folder: swap(folder, "env.json", '"tokens": "', '"tokens": "0'),
            "no longer what it was trained on",
        ),
        (
            lambda folder: swap(folder, "env.json", '"base_weights": "', '"base_weights": "0'),
            "trained on other weights",
        ),
        (
            lambda folder: (folder / "adapter/adapter_model.safetensors").write_bytes(b"x"),
            "not the adapter of this run",
        ),
        (
            lambda folder: (folder.parent / "lasting.json").write_text("{"),
            "delete it to measure anew",
        ),
    ],
)
def test_a_damaged_run_is_one_line_and_exit_2(harm, words, swept, tmp_path, capsys):
    source = next((swept / "linear").glob("tiny-*"))
    folder = tmp_path / "o" / source.name
    shutil.copytree(source, folder)
    harm(folder)
    code, out, err = pml(capsys, "lasting", str(tmp_path / "o"), "tokens=0")
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1
    assert not (tmp_path / "o" / "lasting.csv").exists()


def test_a_run_without_its_adapter_is_left_out_and_said(swept, tmp_path, capsys):
    for number, source in enumerate(
        [next((swept / "linear").glob("tiny-*")), next((swept / "book").glob("tiny-*"))]
    ):
        shutil.copytree(source, tmp_path / "o" / source.name)
        if number:
            shutil.rmtree(tmp_path / "o" / source.name / "adapter")
    code, out, err = pml(
        capsys, "lasting", str(tmp_path / "o"), "tokens=0", "decode=false", "figures=false"
    )
    assert code == 0 and "1 run, 1 of them measured now" in out
    assert err.startswith("left out: ") and "no adapter/" in err and len(err.splitlines()) == 1


def swap(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "no such folder"),
        (["empty"], "no finished runs"),
        (["empty", "tokens=-1"], "tokens=-1: must be at least 0"),
        (["empty", "device=foo"], "device=foo: must be auto, cpu, cuda or cuda:N"),
        (["empty", "text=nowhere.txt"], "text=nowhere.txt: no such file"),
        (["empty", "txet=a"], "did you mean 'text'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, out, err = pml(capsys, "lasting", *args)
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]
