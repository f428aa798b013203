"""What a fitted law predicts, and its inverse, against the law that made the cells."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from support.law_groups import fit_quietly
from support.planted_laws import (
    RECALL,
    exact_recall,
    exponential_cells,
    runs_of,
    write,
)

from pml_cli.commands import predict
from pml_cli.config.reports import Predict
from pml_cli.law import inverse
from pml_cli.law.fitted_law import NORMAL_DRAWS, TEXT_DRAWS
from pml_cli.law.forms import Form
from pml_cli.law.law_json import load
from pml_cli.law.parameters import THETA_NAMES
from pml_cli.stats import t_quantile


def ask(root, target="verbatim", *, rank=(), seqlen=(), base=None):
    """Rows of the answer of the one law of a report."""
    (law,) = load(root)
    wanted = inverse.parse_target(target)
    question = inverse.Question(ranks=rank, lengths=seqlen, base=base)
    return inverse.answer(law, wanted, question)["rows"]


def test_what_is_predicted_is_the_law_that_made_the_cells(law_report):
    (row,) = ask(law_report, rank=[5.0], seqlen=[150.0])
    truth = 7.6 * -math.expm1(-11.0 * 5**0.6 * 150**-0.5 / 7.6)
    assert row["gain"]["value"] == pytest.approx(truth, rel=0.01)
    assert row["gain"]["low"] < truth < row["gain"]["high"] < 1.1 * truth
    assert row["loss"]["value"] == pytest.approx(7.6 - row["gain"]["value"])
    assert row["bits"]["value"] == pytest.approx(150 * row["gain"]["value"] / math.log(2))
    assert 0 <= row["recall"]["low"] <= row["recall"]["value"] <= row["recall"]["high"] <= 1
    assert row["outside"] == ""


def test_the_inverse_gives_the_question_back(law_report):
    """The least rank for a loss reaches it, the rank below does not.

    Likewise the longest text, and bits.
    """
    (law,) = load(law_report)

    def loss(rank, length):
        return 7.6 - law.gain(rank, length, 7.6)[0]

    (row,) = ask(law_report, "loss=3.0", seqlen=[100.0])
    rank = row["rank"]["value"]
    assert (
        loss(rank, 100.0) <= 3.0 < loss(rank - 1, 100.0)
        and row["rank"]["low"] <= rank <= row["rank"]["high"]
    )
    (row,) = ask(law_report, "loss=3.0", rank=[8.0])
    length = row["length"]["value"]
    assert loss(8.0, length) <= 3.0 < loss(8.0, length + 1)
    (row,) = ask(law_report, "bits=900", seqlen=[200.0])
    rank = row["rank"]["value"]
    bits = [200 * (7.6 - loss(r, 200.0)) / math.log(2) for r in (rank, rank - 1)]
    assert bits[0] >= 900 > bits[1]
    half, most = ask(law_report, seqlen=[100.0])
    truth = math.exp((RECALL["h"] * math.log(100) - RECALL["a"]) / RECALL["g"])
    assert (
        half["rank"]["low"] <= math.ceil(truth) <= half["rank"]["high"]
        and most["rank"]["value"] >= half["rank"]["value"]
    )


@pytest.mark.parametrize(("beta", "rising"), [(0.5, True), (1.5, False)])
def test_the_shortest_text_is_the_first_that_stores_the_bits(law_report, beta, rising):
    """With beta above 1 long texts store less: the bits rise, and fall again."""
    (law,) = load(law_report)
    theta = law.theta.copy()
    theta[:, THETA_NAMES.index("beta")] = beta
    law = dataclasses.replace(law, theta=theta)

    def bits(length):
        return length * float(law.gain(8.0, length, 7.6)[0]) / math.log(2)

    lengths = np.geomspace(1.0, 1e6, 2000)
    stored = np.array([bits(length) for length in lengths])
    assert (stored.argmax() == len(lengths) - 1) == rising
    most = 2000.0 if rising else float(stored.max())
    for wanted in (0.05 * most, 0.9 * most):
        target = inverse.Target(kind="bits", value=wanted)
        question = inverse.Question(ranks=[8.0], base=7.6)
        (row,) = inverse.answer(law, target, question)["rows"]
        # At least so many bits: rounded up, not down.
        length = row["length"]["value"]
        assert bits(length) >= wanted > bits(length - 1)
    unreached = inverse.Target(kind="bits", value=1e12 if rising else 1.1 * most)
    (row,) = inverse.answer(law, unreached, question)["rows"]
    assert row["length"]["value"] is None


def test_a_text_that_stores_any_bits_has_a_token(law_report):
    (row,) = ask(law_report, "bits=0.001", rank=[8.0])
    assert row["length"]["value"] == row["length"]["low"] == 1


def test_beyond_the_cells_it_says_so_and_what_nothing_reaches_is_none(law_report):
    (row,) = ask(law_report, "loss=0.5", seqlen=[5000.0])
    assert row["outside"].startswith("rank above 24") and "length above 256" in row["outside"]
    (row,) = ask(law_report, "bits=1e9", seqlen=[100.0])
    assert row["rank"]["value"] is None
    shown = io.StringIO()
    everything = (("loss=7.599", {"rank": [1e6]}), ("bits=1e9", {"seqlen": [100.0]}))
    for target, asked in everything:
        predict.run([law_report], Predict(**asked), Console(file=shown, width=80), target)
    assert "any  any to any" in shown.getvalue() and "none  none to none" in shown.getvalue()
    (law,) = load(law_report)
    theta = np.tile([0.1, 0.5, 0.5, 0, 0, 0, 7.0, -3.0], (3, 1))
    low = dataclasses.replace(law, form=Form(link="exp", level=True), theta=theta)
    assert (low.gain(1.0, 200.0, 2.0) == 0).all()
    (row,) = ask(law_report, rank=[4.0], seqlen=[16.0], base=5.0)
    assert row["outside"] == "length below 32" and row["gain"]["high"] <= 5.0


def test_draws_are_of_the_texts_of_the_bootstrap_or_of_the_covariance(law_report, tmp_path):
    """Three texts are too few for a bootstrap of texts; of one nobody knows how texts differ."""
    content = json.loads((law_report / "fit" / "law.json").read_text("utf-8"))
    (group,) = content["groups"]
    chosen = next(law for law in group["laws"] if law["name"] == group["chosen"])
    draws = content["draws"]

    laws = []
    for texts, kept in ((3, draws), (1, draws), (1, {})):
        chosen["texts"] = texts
        content["draws"] = kept
        (tmp_path / "law.json").write_text(json.dumps(content))
        laws += load(tmp_path)
    assert [len(law.theta) - 1 for law in laws] == [TEXT_DRAWS, 300, NORMAL_DRAWS]

    bands = [inverse.with_band(law.gain(4.0, 100.0, 7.6)) for law in laws]
    assert bands[0].value == bands[1].value == bands[2].value
    _, by_bootstrap, by_covariance = (band.high - band.low for band in bands)
    assert 0.5 < by_bootstrap / by_covariance < 2


def test_the_band_of_one_text_says_that_it_knows_of_no_other(law_report, tmp_path):
    cells = exponential_cells(texts=1)
    write(tmp_path / "runs", *runs_of(cells, exact_match=exact_recall(cells)))
    fit_quietly(tmp_path / "runs", draws=50)

    for root, texts in ((law_report, 3), (tmp_path / "runs", 1)):
        for given in ({"rank": [8.0]}, {"rank": [8.0], "seqlen": [64.0]}):
            shown, stored = io.StringIO(), io.StringIO()
            predict.run([root], Predict(**given), Console(file=shown, width=80))
            assert ("one text: the band says nothing of other" in shown.getvalue()) == (texts == 1)
            predict.run([root], Predict(**given), Console(file=stored), as_json=True)
            (answer,) = json.loads(stored.getvalue())
            assert answer["texts"] == texts


def test_the_band_of_a_new_text_is_as_wide_as_few_texts_leave_open(law_report):
    (law,) = load(law_report)
    # Far below the ceiling, where a text deviates by its whole spread.
    alike = inverse.with_band(law.gain(1.0, 256.0, 7.6))
    differing = dataclasses.replace(law, text_spread=0.05)
    band = inverse.with_band(differing.gain(1.0, 256.0, 7.6))
    half = (band.high - band.low) / 2 / band.value
    assert (alike.high - alike.low) / 2 / alike.value < 0.05
    assert half == pytest.approx(t_quantile(2) * 0.05 * math.sqrt(4 / 3), rel=0.1)


def test_the_band_holds_new_cells_as_often_as_it_says(law_report):
    """Cells of another seed, unsaturated ones: 95 % of them, give or take."""
    (law,) = load(law_report)
    new = exponential_cells(texts=3, seed=77)
    inside = []
    for rank, length, delta in zip(new.rank, new.length, new.delta, strict=True):
        band = inverse.with_band(law.gain(rank, length, 7.6))
        inside.append(band.low <= delta <= band.high)
    inside = np.array(inside)
    assert 0.88 <= inside[~new.saturated].mean() <= 1


def fitted(root, **planted):
    """The report of cells with another planted law."""
    cells = exponential_cells(texts=3, **planted)
    write(root, *runs_of(cells))
    fit_quietly(root, draws=200)
    return root


@pytest.mark.slow
def test_where_the_law_is_flat_its_band_is_narrow_and_what_all_cells_reach_is_reached(tmp_path):
    """A spread of 2 % of 7.6 nats would be more than the loss that is left there."""
    fitted(tmp_path, C=45.0, noise=0.02)
    (row,) = ask(tmp_path, rank=[24.0], seqlen=[32.0])
    assert 0 <= row["loss"]["low"] <= row["loss"]["high"] < 0.07
    (row,) = ask(tmp_path, "loss=0.1", seqlen=[32.0])
    assert row["rank"]["value"] <= row["rank"]["high"] <= 24


def test_where_a_law_with_b_below_0_ends_nothing_is_gained(law_report, tmp_path):
    """Far from the cells power + b falls below 0: once the answer was "any length"."""
    content = json.loads((law_report / "fit" / "law.json").read_text("utf-8"))
    (group,) = content["groups"]
    entry = next(law for law in group["laws"] if law["name"] == "exp + b")
    entry["theta"]["b"] = -0.5
    group["chosen"] = "exp + b"
    content["draws"] = {}
    (tmp_path / "law.json").write_text(json.dumps(content))
    (row,) = ask(tmp_path, rank=[1.0], seqlen=[1e5])
    assert row["gain"] == {"value": 0, "low": 0, "high": 0}
    assert row["loss"]["value"] == pytest.approx(7.6)
    (row,) = ask(tmp_path, "loss=7.0", rank=[8.0])
    assert 0 < row["length"]["low"] <= row["length"]["value"] <= row["length"]["high"] < 1e6


@pytest.mark.slow
def test_without_a_base_loss_of_its_own_the_band_spans_those_of_the_texts(tmp_path):
    rows = []
    for text, base in enumerate((4.0, 6.0, 8.0)):
        cells = exponential_cells(texts=1, C=40.0, base=base, seed=text)
        rows += [row | {"data_seed": text} for row in runs_of(cells)]
    write(tmp_path, *rows)
    fit_quietly(tmp_path, draws=200)
    (row,) = ask(tmp_path, rank=[24.0], seqlen=[32.0])
    assert row["base_loss"] == pytest.approx(6)
    assert row["gain"]["low"] < 4.1 and row["gain"]["high"] > 7.9
    (row,) = ask(tmp_path, rank=[24.0], seqlen=[32.0], base=6.0)
    assert 5.8 < row["gain"]["low"] < row["gain"]["high"] < 6.1
