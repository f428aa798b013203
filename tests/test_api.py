"""pml from Python: the same runs, laws and refusals as on the command line."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from support.sweeps import quick_in

import pml_cli as pml
from pml_cli import api
from pml_cli.config.request import load

SETTINGS = {"train.steps": 30, "train.lr": 0.02, "train.decode": False, "model.device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small sweep made by the command line, and its report."""
    place = tmp_path_factory.mktemp("api")
    words = [f"{key}={str(value).lower()}" for key, value in SETTINGS.items()]
    assert quick_in(place, "sweep", "rank=1,2,4", "seqlen=8,16,32", "out=out", *words) == 0
    assert quick_in(place, "fit", "out", "figures=false", "draws=20") == 0
    return place / "out"


def test_a_sweep_is_that_of_the_command_line(folder):
    ranks = pml.sweep(rank=[1, 2], seqlen=(8, 16), out=folder, quiet=True, settings=SETTINGS)
    assert len(ranks) == 4

    everything = pml.runs(folder)
    assert len(everything) == 9, "cells of the sweep were trained again under other ids"
    assert set(ranks["id"]) < set(everything["id"])


def test_the_tokens_and_samples_of_a_run(folder):
    run = pml.runs(folder).iloc[0]
    tokens = pml.tokens(run)
    last = tokens[tokens["step"] == tokens["step"].max()]
    assert last["nll"].mean() == pytest.approx(run["final_loss"], rel=1e-5)

    pd.testing.assert_frame_equal(tokens, pml.tokens(run["folder"]))
    (sample,) = pml.samples(run).itertuples()
    assert len(sample.target_ids) == run["seqlen"]


def test_a_row_may_be_a_dict(folder):
    run = pml.runs(folder).iloc[0]
    pd.testing.assert_frame_equal(pml.tokens(run.to_dict()), pml.tokens(run))
    with pytest.raises(pml.UserError, match="not ndarray"):
        pml.tokens(np.array(["folder"]))


def test_a_list_that_holds_itself_is_refused():
    endless = [1]
    endless.append(endless)
    with pytest.raises(pml.UserError, match="rank: nested too deep"):
        pml.sweep(rank=endless)


def test_a_law_says_what_pml_predict_says(folder, quick, capsys):
    law = pml.Law.load(folder)
    assert law.status == "OK" and law.ranks == (1, 4)
    asked = quick("predict", str(folder), "rank=2,3", "seqlen=20", "--json")
    (answered,) = json.loads(asked.stdout)

    predicted = law.predict(rank=[2, 3], seqlen=20)
    for row, (_, found) in zip(answered["rows"], predicted.iterrows(), strict=True):
        assert found["gain"] == row["gain"]["value"]
        assert (found["gain_low"], found["gain_high"]) == (row["gain"]["low"], row["gain"]["high"])


def test_several_values_may_be_an_array_or_a_column(folder):
    law = pml.Law.load(folder)
    asked = law.predict(rank=[2, 3], seqlen=20)
    several = (np.array([2, 3]), pd.Series([2, 3]), np.float32([2, 3]), range(2, 4), iter((2, 3)))
    for ranks in several:
        pd.testing.assert_frame_equal(law.predict(rank=ranks, seqlen=np.int64(20)), asked)
    one = law.predict(rank=np.array(2), seqlen=20, base=np.array(7.5))
    assert len(one) == 1 and one["base_loss"].tolist() == [7.5]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rank": 0}, "rank=0: must be"),
        ({"rank": [4, -1]}, "rank=-1: must be"),
        ({"rank": "48"}, "rank='48': must be a number"),
        ({"rank": ["4", "8"]}, "rank='4': must be a number"),
        ({"rank": True}, "rank=True: must be a number"),
        ({"rank": np.array([[4]])}, "rank=[4]: must be a number"),
        ({"seqlen": pd.Series([math.nan])}, "seqlen=nan: must be"),
        ({"seqlen": 10**400}, "seqlen=inf: must be"),
        ({"facts": 0.5}, "facts=0.5: must be"),
        ({"rank": 4, "base": 0}, "base=0: must be"),
        ({"rank": 4, "base": -1.0}, "base=-1: must be"),
        ({"rank": []}, "no question"),
        ({"rank": 4, "target": 5}, "--target 5: must be"),
    ],
)
def test_what_pml_predict_refuses_is_refused(folder, asked, said):
    with pytest.raises(pml.UserError) as refused:
        pml.Law.load(folder).predict(**asked)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_fit_of_no_folder_is_refused():
    with pytest.raises(pml.UserError, match="at least one folder"):
        pml.fit()


def test_parameters_come_with_the_intervals_of_the_tables(folder):
    law = pml.Law.load(folder)
    content = json.loads((folder / "fit" / "law.json").read_text())
    (group,) = content["groups"]
    assert law.parameters.loc["alpha", ["low", "high"]].tolist() == group["intervals_95"]["alpha"]
    assert law.parameters.loc["alpha", "low"] < law.parameters.loc["alpha", "value"]


def test_nothing_is_added_to_the_folder_of_a_run(folder, tmp_path, quick):
    run = tmp_path / "runs" / "one"
    shutil.copytree(pml.runs(folder)["folder"].iloc[0], run)
    complete = sorted(run.iterdir())
    with pytest.raises(pml.UserError, match=r"one-fit.*no law was identified"):
        pml.fit(run, settings={"figures": False, "draws": 0})
    assert quick("transition", str(run), "figures=false").returncode == 0

    assert sorted(run.iterdir()) == complete
    names = {path.name for path in run.parent.iterdir()}
    assert names == {"one", "one-fit", "one-transition"}


def test_a_report_without_intervals_is_read(folder, tmp_path):
    content = json.loads((folder / "fit" / "law.json").read_text())
    del content["groups"][0]["intervals_95"]
    (tmp_path / "law.json").write_text(json.dumps(content))

    law = pml.Law.load(tmp_path)
    assert law.parameters["low"].isna().all() and law.parameters["value"].notna().all()


def test_a_fit_from_python_writes_the_report(folder, tmp_path):
    out = tmp_path / "report"
    (law,) = pml.fit(folder, out=out, draws=0, figures=False)
    assert (out / "law.json").is_file()
    assert law.form == pml.Law.load(out).form


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: pml.sweep(rnak=3), "rank"),
        (lambda: pml.sweep(rank=0), "rank=0"),
        (lambda: pml.sweep(rank=[]), "rank=.*no values"),
        (lambda: pml.sweep(rank={1, 2}), "rank: a set"),
        (lambda: pml.sweep(rank=iter((1, 2))), "rank: a tuple_iterator"),
        (lambda: pml.sweep(rank=object()), "rank=<object"),
        (lambda: pml.sweep(rank=b"4"), "rank=b'4'"),
        (lambda: pml.sweep(rank=10**5000), "rank: a number"),
        (lambda: pml.sweep(rank=range(10**7)), "rank: 10000000 values"),
        (lambda: pml.sweep(settings=["rank=1"]), "settings="),
        (lambda: pml.sweep(settings="rank=1"), "settings="),
        (lambda: pml.sweep(settings={5: 1}), "^5: "),
        (lambda: pml.sweep(settings={"rank": 2}, rank=1), "rank: given twice"),
        (lambda: pml.sweep(settings={"model.architecture": {"a b": 1}}), "model.architecture"),
        (lambda: pml.sweep(file=5), "file=5"),
        (lambda: pml.fit(5), "folders=5"),
        (lambda: pml.fit("nowhere", by=5), "by=5"),
        (lambda: pml.fit("nowhere", by=[None]), "by="),
        (lambda: pml.fit("nowhere", by=10**5000), "by=int"),
        (lambda: pml.fit("nowhere", by=np.array(["lr"])), "nowhere"),
        (lambda: pml.runs(["a", "b"]), "folders="),
        (lambda: pml.runs(None), "folders=None"),
        (lambda: pml.runs("a" * 5000), "name too long"),
        (lambda: pml.tokens(5), "run: must be the folder"),
        (lambda: pml.tokens(pd.DataFrame({"folder": ["a"]})), "not DataFrame"),
        (lambda: pml.tokens(pd.Series({"id": "a"})), "not Series"),
        (lambda: pml.samples(pd.Series({"folder": math.nan})), "run: must be"),
        (lambda: pml.samples("a" * 5000), "name too long"),
        (lambda: pml.Law.load(None), "folder=None"),
        (lambda: pml.Law.load("nowhere", group=5), "group=5"),
        (lambda: pml.fit("nowhere"), "nowhere"),
        (lambda: pml.fit("nowhere", y=1), "y"),
        (lambda: pml.tokens("nowhere"), "nowhere"),
        (lambda: pml.Law.load("nowhere"), "nowhere"),
    ],
)
def test_what_the_command_line_refuses_raises(call, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pml.UserError, match=word):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    [
        "it's",
        'a "b"',
        "a,b",
        "a=b",
        "back\\slash",
        "end\\",
        "both \\'\\",
        "${x}",
        "${oc.env:HOME}",
        "\\${x}\\",
        "a\\\\${x}'${y}",
        "[1]",
        "null",
        "é",
    ],
)
def test_texts_reach_their_setting_whole(value):
    request = load("sweep", api._overrides({"data.prompt": value}, {}))
    assert [run.data.prompt for run in request.runs] == [value]


def test_a_mapping_reaches_its_setting_whole():
    fields = {"model_type": "llama", "vocab_size": 512, "tie": True, "scales": {"a.b": [1, 2.5]}}
    request = load("sweep", api._overrides({"model.architecture": fields}, {"rank": 1}))
    assert [run.model.architecture for run in request.runs] == [fields]


@pytest.mark.parametrize("several", [np.array([1, 2]), pd.Series([1, 2]), range(1, 3), (1, 2)])
def test_several_values_of_a_setting(several):
    request = load("sweep", api._overrides({}, {"rank": several}))
    assert [run.rank for run in request.runs] == [1, 2]


def test_names_are_complete():
    assert set(pml.__all__) <= set(dir(pml))
    assert all(getattr(pml, name) is not None for name in pml.__all__)


def test_a_file_that_was_edited_since_is_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"data": "jsonl", "data.path": "facts.jsonl", "seqlen": "all", "model.device": "cpu"}
    asked |= {"rank": 1, "train.steps": 2, "train.decode": False, "out": "runs"}
    for answer in ("P7", "P8"):
        fact = {"question": "Which pump?", "answer": answer}
        (tmp_path / "facts.jsonl").write_text(json.dumps(fact))
        trained = pml.sweep(settings=asked, quiet=True)
        (samples,) = pml.samples(trained["folder"].iloc[0]).to_dict("records")
        assert samples["target"] == answer
