"""The harm of a run: the mean over kinds of text, its interval over windows of them."""

import json
import math

import numpy as np
import pytest
import torch
from support.adapters import random_bank
from support.passes import largest_pass

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model
from pml_cli.data.generic_text import KINDS, beginnings, generic_pool
from pml_cli.data.source import Sample
from pml_cli.errors import UserError
from pml_cli.evaluation import forgetting, own_text
from pml_cli.evaluation.finished_runs import ForgettingEntry, Measurements
from pml_cli.evaluation.forgetting import BaseReading, Readings
from pml_cli.evaluation.forgetting_runs import entry_of, harm_of
from pml_cli.io import cache_folder
from pml_cli.stats import t_quantile

MODEL = Model(device="cpu")


def test_every_kind_has_the_same_weight():
    rises = {"prose": [1.0, 1.0], "docs": [2.0] * 5, "code": [3.0] * 3, "chat": [6.0] * 9}
    harm = harm_of(rises | {"own": [100.0, 90.0]})
    assert (harm.mean, harm.low, harm.high) == (3.0, 3.0, 3.0)


def test_the_interval_of_equal_kinds_by_hand():
    """Four kinds of five windows with the same spread: 16 degrees of freedom."""
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    harm = harm_of({kind: values + shift for shift, kind in enumerate(KINDS)})
    assert harm.mean == pytest.approx(4.5)
    error = math.sqrt(4 * values.var(ddof=1) / 5) / 4
    assert harm.high - harm.mean == pytest.approx(t_quantile(16) * error)
    assert harm.mean - harm.low == pytest.approx(t_quantile(16) * error)


def test_the_interval_covers_the_truth():
    """Planted: kinds of other sizes and spreads; 95 % of the intervals hold the mean."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        rises = {}
        for kind, mean, spread, count in zip(
            KINDS, [0, 1, 2, 5], [0.1, 1, 0.3, 2], [8, 12, 5, 9], strict=True
        ):
            rises[kind] = random.normal(mean, spread, count)
        harm = harm_of(rises)
        covered += harm.low <= 2.0 <= harm.high
    assert 0.935 < covered / 2000 < 0.965


def test_without_one_kind_there_is_no_harm_and_of_single_windows_no_interval():
    assert harm_of({"prose": [1.0], "docs": [1.0], "code": [1.0]}).mean is None
    harm = harm_of({kind: [0.5] for kind in KINDS})
    assert (harm.mean, harm.low, harm.high) == (0.5, None, None)


@pytest.mark.parametrize(
    "adapter", [MlpBlockAdapter(), LinearAdapter(targets=["down_proj"])], ids=["block", "linear"]
)
def test_adapters_compared_together_are_as_each_alone(tiny_base, adapter):
    """The base has read the windows once, for whatever bank comes."""
    bank = random_bank(tiny_base, adapter, [2, 4, 3], scale=2, seed=3)
    for B in bank.B.values():
        B[1] = 0
    windows = generic_pool(MODEL, "code", "held_out").windows[:3]
    readings = Readings(tiny_base)
    together = readings.by_window(bank, [windows, windows, windows[:2]])
    for k, windows_of_cell in enumerate([windows, windows, windows[:2]]):
        (alone,) = BaseReading(tiny_base, bank, windows_of_cell).compare(bank.select([k]))
        assert list(alone.tokens) == [256] * len(windows_of_cell)
        for name, values in alone.means.items():
            np.testing.assert_allclose(together[k].means[name], values, atol=2e-6)

    assert together[1].harm == pytest.approx(0, abs=1e-6)
    assert together[1].means["kl"] == pytest.approx(0, abs=1e-6)
    assert together[1].means["changed"].sum() == 0
    assert together[0].means["kl"].min() > 0.01


def test_a_long_text_is_read_part_by_part(tiny_base, monkeypatch):
    """Memory does not grow with the user's file: as in one pass, of which none is large."""
    bank = random_bank(tiny_base, MlpBlockAdapter(), [2, 4], scale=2, seed=3)
    (*windows, last) = generic_pool(MODEL, "code", "held_out").windows[:7]
    windows.append(Sample(prompt=last.prompt, target=last.target[:40]))
    in_one_pass = BaseReading(tiny_base, bank, windows).compare(bank)

    # Two windows of 257 tokens, and two parts that are kept.
    limit = 600
    monkeypatch.setattr(forgetting, "EVALUATION_TOKENS", limit)
    monkeypatch.setattr(forgetting, "KEPT_TOKENS", 2 * limit)
    with largest_pass(tiny_base, monkeypatch) as passes:
        readings = Readings(tiny_base)
        in_parts = readings.by_window(bank, [windows, windows])
    assert limit / 2 < max(passes) <= limit
    assert sum(reading.input_tokens for reading in readings._readings.values()) <= 2 * limit

    for whole, parts in zip(in_one_pass, in_parts, strict=True):
        assert list(parts.tokens) == list(whole.tokens) == [256] * 6 + [40]
        for name, values in whole.means.items():
            np.testing.assert_allclose(parts.means[name], values, atol=2e-6)


def test_a_short_text_is_read_once_for_all_banks(tiny_base, monkeypatch):
    bank = random_bank(tiny_base, MlpBlockAdapter(), [2], scale=2, seed=3)
    windows = generic_pool(MODEL, "code", "held_out").windows[:3]
    readings = Readings(tiny_base)
    (first,) = readings.by_window(bank, [windows])
    with monkeypatch.context() as read:
        read.setattr(tiny_base, "prefix", lambda *_, **__: pytest.fail("read again"))
        (again,) = readings.by_window(bank, [windows])
    assert again.total() == first.total()


def test_the_entry_of_a_run(tiny_base):
    bank = random_bank(tiny_base, MlpBlockAdapter(), [2], scale=2, seed=3)
    readings = Readings(tiny_base)
    windows = {}
    for kind in KINDS:
        texts = [generic_pool(MODEL, kind, "held_out").windows[:2]]
        (windows[kind],) = readings.by_window(bank, texts)
    entry = entry_of(windows)
    harms = [entry["kinds"][kind]["harm"] for kind in KINDS]
    assert entry["harm"] == pytest.approx(np.mean(harms))
    assert entry["harm_low"] < entry["harm"] < entry["harm_high"]
    prose = entry["kinds"]["prose"]
    assert prose["harm"] == prose["loss"] - prose["base_loss"]
    assert (prose["windows"], prose["tokens"]) == (2, 512)
    first, second = windows["prose"].harm
    assert prose["harm_se"] == pytest.approx(abs(first - second) / 2)


@pytest.mark.slow
def test_what_the_model_writes_itself(tiny_base, tmp_path, monkeypatch):
    """Samples of its own distribution: their mean surprise is its mean entropy; kept in a file."""
    monkeypatch.setenv("PML_CACHE", str(tmp_path))
    monkeypatch.setattr(own_text, "WINDOW", 64)
    prompts = beginnings(MODEL)
    assert len(prompts) == 12
    assert len({len(prompt.prompt) for prompt in prompts}) == 1
    written = own_text.own_text(tiny_base, prompts)
    assert {len(sample.target) for sample in written} == {64}

    surprises, entropies = [], []
    for sample in written:
        ids = torch.tensor([[*sample.prompt, *sample.target]])
        with torch.no_grad():
            hidden = tiny_base.full(ids[:, :-1]).last_hidden_state[0, -64:]
            log_p = tiny_base.logits(hidden).log_softmax(1)
        surprises.append(-log_p.gather(1, torch.tensor(sample.target)[:, None]).mean())
        entropies.append(-(log_p.exp() * log_p).sum(1).mean())
    difference = torch.stack(surprises) - torch.stack(entropies)
    # 768 tokens: a greedy text would be two nats below.
    assert abs(difference.mean()) < 0.3

    with monkeypatch.context() as kept:
        kept.setattr(own_text, "_sampled", lambda *_: pytest.fail("sampled again"))
        assert own_text.own_text(tiny_base, prompts) == written

    # A damaged file is written anew; where it cannot be, that is no fault.
    (cached,) = (cache_folder() / "own_text").iterdir()
    whole = cached.read_text()
    for damaged in ("[]", "[[1]]", "[[999999999]]", "{", json.dumps(json.loads(whole)[:1])):
        cached.write_text(damaged)
        assert own_text.own_text(tiny_base, prompts) == written
        assert cached.read_text() == whole
    cached.unlink()
    cached.mkdir()
    assert own_text.own_text(tiny_base, prompts) == written


@pytest.mark.parametrize("field", ["base_loss", "loss", "kl", "changed", "windows", "tokens"])
@pytest.mark.parametrize("wrong", [None, "x", [1]])
def test_a_number_of_a_kind_that_is_none_is_refused(tmp_path, field, wrong):
    numbers = dict.fromkeys(("base_loss", "loss", "kl", "changed", "harm"), 1.0)
    kind = numbers | {"windows": 2, "tokens": 9} | {field: wrong}
    entry = {"id": "a", "key": "b", "kinds": {"chat": kind}}
    entry |= {"harm": 1.0, "harm_low": None, "harm_high": None}
    path = tmp_path / "forgetting.json"
    path.write_text(json.dumps({"format": 1, "runs": [entry]}))
    with pytest.raises(UserError, match=rf"forgetting.json: .*{field}"):
        Measurements(path, 1, ForgettingEntry)
