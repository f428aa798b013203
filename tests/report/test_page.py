"""The page of `pml report`: one file, every section, nothing of a file is markup."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support import hostile
from support.planted_forgetting import entry
from support.planted_laws import exponential_cells, grid, result, runs_of, write
from support.token_tables import token_table, write_run

from pml_cli.commands import report
from pml_cli.config.reports import Fit, LawSettings, Report
from pml_cli.report.page.page import script_json
from pml_cli.report.page.section import Sources, jsonable
from pml_cli.report.page.sections import forgetting

OWN_TAGS = {
    *("html", "head", "meta", "title", "style", "script", "body", "header", "main", "nav"),
    *("section", "h1", "h2", "p", "a", "button", "details", "summary", "div", "span", "code"),
    *("table", "thead", "tbody", "tr", "th", "td", "ul", "li", "figure", "figcaption", "img"),
    *("label", "select", "option", "input", "output"),
}


class Tags(HTMLParser):
    """Counts the elements of a page, and keeps its texts outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.counts = {}
        self.texts = []
        self.inside = None
        self.data = ""
        self.attributes = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}
        if tag in ("script", "style"):
            self.inside = "data" if ("id", "data") in attrs else tag

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside = None

    def handle_data(self, data):
        if self.inside == "data":
            self.data += data
        elif self.inside is None:
            self.texts.append(data)


@pytest.fixture
def page_of(tmp_path, quick):
    """page_of(): the page of the runs in runs/."""

    def make(*settings, draws=50):
        done = quick("report", "runs", f"draws={draws}", *settings)
        assert done.returncode == 0, done.stderr
        return Tags((tmp_path / "runs" / "report.html").read_text("utf-8"))

    return make


def test_a_page_has_every_section_and_the_cells(tmp_path, page_of):
    write(tmp_path / "runs", *grid(), *grid(loss="memft_margin"))
    write_run(tmp_path / "runs", "tokens", token_table(), seed=5)
    page = page_of()
    data = json.loads(page.data)
    names = ("law", "predictor", "recall", "tokens", "losses", "forgetting", "audit", "verdict")
    assert set(data) == set(names)
    assert len(data["audit"]["id"]) == 41
    largest = data["law"][0]
    assert len(largest["cells"]["size"]) == 21 and largest["formula"].startswith("dL = ")
    assert [line["loss"] for line in data["losses"][0]["lines"]] == ["sft", "memft_margin"]

    text = " ".join(page.texts)
    assert "41 adapters of tiny on random: ranks 2 to 32, 6 to 256 target tokens." in text
    assert "one text: the band says nothing of other texts." in text
    assert "Not measured here." in text and "pml forgetting runs" in text


def test_the_law_on_the_page_is_the_law(tmp_path, page_of, quick):
    write(tmp_path / "runs", *runs_of(exponential_cells(texts=1)))
    (law,) = json.loads(page_of().data)["law"]
    quick("fit", "runs", "figures=false", "draws=50")
    (group,) = json.loads((tmp_path / "runs/fit/law.json").read_text())["groups"]
    chosen = next(entry for entry in group["laws"] if entry["name"] == group["chosen"])
    # The page keeps five digits.
    assert {entry["name"]: entry["value"] for entry in law["parameters"]} == jsonable(
        {entry["name"]: chosen["parameters"][entry["name"]] for entry in law["parameters"]}
    )
    intervals = {entry["name"]: entry["interval"] for entry in law["parameters"]}
    assert len(intervals["alpha"]) == 2
    assert intervals == jsonable({name: group["intervals_95"].get(name, []) for name in intervals})

    surface = law["surface"]
    # The planted law itself, at the corner of the largest rank and the shortest length.
    planted = 7.6 * -np.expm1(-11.0 * 24**0.6 * 32**-0.5 / 7.6)
    assert surface["gain"][-1][0] == pytest.approx(planted, rel=0.05)
    for line in law["lines"]:
        assert all(low <= high for low, high in zip(line["low"], line["high"], strict=True))


def test_the_page_is_fitted_as_the_law_is():
    page, law = Report(), Fit()
    for field in dataclasses.fields(LawSettings):
        assert getattr(page, field.name) == getattr(law, field.name)


@pytest.mark.slow
def test_the_predictor_says_what_pml_predict_says(tmp_path, page_of, quick):
    write(tmp_path / "runs", *grid())
    (table,) = json.loads(page_of().data)["predictor"]
    quick("fit", "runs", "figures=false", "draws=50")
    for length in (64, 256):
        asked = quick("predict", "runs", f"seqlen={length}", "--json")
        rows = json.loads(asked.stdout)[0]["rows"]
        assert [row["chance"] for row in rows] == [ranks["chance"] for ranks in table["chances"]]
        for row, ranks in zip(rows, table["chances"], strict=True):
            index = table["length"].index(length)
            for name in ("value", "low", "high"):
                assert ranks[name][index] == jsonable(row["rank"][name])


def test_losses_are_compared_at_their_best_rates(tmp_path, page_of):
    better = {"token_accuracy": 0.9, "exact_match": 0.0}
    write(tmp_path / "a", *grid(ranks=(4,), lr=0.01), *grid(ranks=(4,), lr=0.1, **better))
    write(tmp_path / "runs" / "b", *grid(ranks=(4,), loss="memft_margin", lr=0.5))
    (tmp_path / "a").rename(tmp_path / "runs" / "a")
    plain, margin = json.loads(page_of().data)["losses"][0]["lines"]
    assert (plain["rate"], plain["tokens"]) == ("0.1", 0.9)
    assert (margin["rate"], margin["runs"]) == ("0.5", 4)


def test_a_rate_of_fewer_cells_is_no_match(tmp_path, page_of):
    best = {"token_accuracy": 1.0, "exact_match": 1.0}
    write(tmp_path / "runs" / "a", *grid(lengths=(64,)))
    write(tmp_path / "runs" / "b", result(32, 64, lr=0.1, **best))
    write(tmp_path / "runs" / "c", *grid(lengths=(64,), loss="memft_margin"))
    plain, _ = json.loads(page_of().data)["losses"][0]["lines"]
    assert plain["rate"] == "0.01" and plain["runs"] == 5


def test_each_task_has_losses_cells_and_rates_of_its_own(tmp_path, page_of):
    """Two models: what one recalls is not pooled with the other, nor the rate of one length."""
    high, low = ({"token_accuracy": share, "exact_match": 0.0} for share in (0.9, 0.2))
    first = {"ranks": (4, 8), "lengths": (32, 64)}
    second = {"ranks": (4,), "lengths": (32,), "model": "other"}
    runs = [
        *grid(**first, lr=0.01, **low),
        *grid(**first, loss="memft_margin", lr=0.01),
        *grid(**second, lr=0.01, **high),
        *grid(**second, loss="memft_ot", lr=0.02),
        # At one length alone a better rate; and what no other loss has.
        *grid(ranks=(4, 8), lengths=(64,), lr=0.1, **high),
        *grid(ranks=(16,), lengths=(32,), lr=0.01),
        *grid(ranks=(4,), lengths=(32,), model="third"),
    ]
    write(tmp_path / "runs", *runs)
    page = page_of()
    most, least = json.loads(page.data)["losses"]
    assert (most["name"], most["cells"]) == ("tiny", 4)
    assert (least["name"], least["cells"]) == ("other", 1)
    assert [line["loss"] for line in least["lines"]] == ["sft", "memft_ot"]

    plain = most["lines"][0]
    assert plain["rate"] == "0.01, 0.1" and plain["tokens"] == pytest.approx((0.2 + 0.9) / 2)
    assert least["lines"][0]["tokens"] == 0.9
    text = " ".join(page.texts)
    assert "1 run of tasks without cells that several losses have" in text
    assert "1 run in cells that another loss lacks" in text


@pytest.mark.slow
def test_losses_under_other_settings_are_not_compared(tmp_path, page_of):
    write(tmp_path / "runs" / "a", *grid(steps=10))
    write(tmp_path / "runs" / "b", *grid(loss="memft_margin", steps=1000))
    assert "losses" not in json.loads(page_of().data)


def test_what_pml_forgetting_measured_is_shown(tmp_path, page_of):
    write(tmp_path / "runs", result(2, 32))
    for place in ("runs", "runs/below"):
        (tmp_path / place).mkdir(exist_ok=True)
        write_forgetting(tmp_path / place, entry(harm=0.5), entry(harm=0.7, exact=False, seed=1))
    (point, _) = json.loads(page_of().data)["forgetting"]
    assert (point["harm"], point["recall"], point["method"]) == (0.6, 0.5, "sft")

    (tmp_path / "runs/below/forgetting.json").write_text('{"runs": [{"harm": "x"}]}')
    page = page_of()
    assert len(json.loads(page.data)["forgetting"]) == 1
    assert "run pml forgetting again" in " ".join(page.texts)


def test_what_pml_memorize_measured_is_shown(tmp_path):
    """It writes no means, as pml forgetting does."""
    write_forgetting(tmp_path, entry(harm=0.025, exact=True), entry(harm=0.5, rank=4))
    sources = Sources(paths=[tmp_path], runs=None, groups=[], laws={}, failures={}, shown_runs=0)
    section = forgetting.section(sources)
    assert [(point["rank"], point["harm"], point["recall"]) for point in section.data] == [
        (4, 0.5, 1.0),
        (8, 0.025, 1.0),
    ]
    assert section.context["notes"] == section.context["partly"] == []


def test_kinds_of_text_that_were_not_measured_are_named(tmp_path, page_of):
    """Not `Not measured here`: prose was."""
    write(tmp_path / "runs", result(2, 32))
    write_forgetting(tmp_path / "runs", entry_of_prose())
    page = page_of()
    text = " ".join(page.texts)
    assert json.loads(page.data)["forgetting"] is None
    assert "1 run not measured on docs, code, chat; harm is the mean over prose, docs," in text
    assert "pml forgetting runs measures the rest" in " ".join(text.split())
    assert "Not measured here." not in text

    # Beside runs that were measured on all of them.
    write_forgetting(tmp_path / "runs", entry_of_prose(), entry())
    page = page_of()
    assert len(json.loads(page.data)["forgetting"]) == 1
    assert "1 run not measured on docs, code, chat" in " ".join(page.texts)


def entry_of_prose():
    """A run after `kinds=prose`."""
    measured = entry() | {"harm": None, "harm_low": None, "harm_high": None}
    return measured | {"kinds": {"prose": measured["kinds"]["prose"]}}


def write_forgetting(folder, *entries):
    """forgetting.json as pml memorize leaves it."""
    content = {"format": 1, "runs": list(entries)}
    (folder / "forgetting.json").write_text(json.dumps(content))


def test_forgetting_of_several_models_keeps_them_apart(tmp_path, page_of):
    write(tmp_path / "runs", result(2, 32))
    setup = {"model": "tiny", "data": "text", "adapter": "mlp_block", "setting": "", "layer": 4}
    others = {"model": "other", "data": "facts:a", "adapter": "lora", "setting": "train.batch=4"}
    # Sorted by the model.
    groups = [setup | others, setup]
    write_forgetting(tmp_path / "runs", *(entry(**group) for group in groups))
    page = page_of()
    points = json.loads(page.data)["forgetting"]
    columns = ("model", "data", "adapter", "setting", "layer")
    for point, group in zip(points, groups, strict=True):
        assert [str(point[name]) for name in columns] == [str(group[name]) for name in columns]
    text = " ".join(page.texts)
    assert "The cells differ in model, data, adapter, setting" in text


def test_whole_numbers_keep_every_digit():
    values = [131072.0, 10001.0, 0.123456789]
    assert jsonable(values) == [131072, 10001, 0.12346]


def test_runs_whose_tokens_are_damaged_are_named(tmp_path, page_of):
    write_run(tmp_path / "runs", "tokens", token_table())
    write_run(tmp_path / "runs", "damaged", token_table().assign(argmax_id=-5), seed=1)
    page = page_of()
    assert [run["id"] for run in json.loads(page.data)["tokens"]] == ["tokens"]
    assert "column argmax_id has values that are no count" in " ".join(page.texts)


def test_tokens_are_those_of_the_file(tmp_path, page_of):
    import base64

    write(tmp_path / "runs", result(2, 32))
    write_run(tmp_path / "runs", "tokens", token_table())
    (run,) = json.loads(page_of().data)["tokens"]
    p = np.frombuffer(base64.b64decode(run["p"]), np.uint8).reshape(4, 6) / 255
    planted = token_table()["p"].to_numpy().reshape(4, 6)
    assert np.abs(p - planted).max() < 1 / 255
    assert ((p > 0.5) == (planted > 0.5)).all()
    assert run["steps"] == [0, 10, 20, 30] and run["text"][0] == "100"
    assert run["correct"] == [1, 1, 1, 1, 1, 0]


def test_without_tokens_or_law_the_rest_is_shown(tmp_path, page_of):
    write(tmp_path / "runs", result(2, 32))
    page = page_of("runs=0")
    data = json.loads(page.data)
    assert "tokens" not in data and "predictor" not in data
    assert data["law"][0]["lines"] == [] and data["law"][0]["surface"] is None
    assert "follows no law that these cells identify" in " ".join(page.texts)


@pytest.mark.slow
def test_texts_of_files_are_no_markup(tmp_path, page_of):
    write(tmp_path / "runs", *grid(ranks=(2, 4, 8), lengths=(32, 64)))
    scripts = page_of().counts["script"]
    for number, text in enumerate(hostile.texts()):
        run = result(2, 32, data=text, setting=f"data.path={text}", seed=number)
        write(tmp_path / "runs" / f"more{number}", run)
    page = page_of()

    assert set(page.counts) <= OWN_TAGS
    assert page.counts["script"] == scripts
    assert not {name for name in page.attributes if name.startswith("on")}
    names = {group["name"] for group in json.loads(page.data)["law"]}
    assert all(any(text in name for name in names) for text in hostile.MARKUP)


def test_script_data_ends_no_script():
    for text in hostile.texts():
        written = script_json({text: [text]})
        assert "<" not in written and "&" not in written
        assert json.loads(written) == {text: [text]}


def test_numbers_that_are_none_are_null():
    values = {"a": float("nan"), "b": np.float32(0.1), "c": np.array([1, 2]), "d": [float("inf")]}
    assert jsonable(values) == {"a": None, "b": 0.1, "c": [1, 2], "d": [None]}


def test_where_the_page_goes(tmp_path, quick, monkeypatch):
    write(tmp_path / "runs", result(2, 32))
    assert quick("report", "runs", "out=page.html", "draws=0").returncode == 0
    (tmp_path / "folder").mkdir()
    assert quick("report", "runs", "out=folder", "draws=0").returncode == 0
    assert (tmp_path / "page.html").exists() and (tmp_path / "folder/report.html").exists()

    # Again over a page, but over nothing else.
    assert quick("report", "runs", "out=page.html", "draws=0").returncode == 0
    kept = (tmp_path / "runs/run0/result.json").read_bytes()
    for place in ("runs/run0/result.json", "/dev/null"):
        refused = quick("report", "runs", f"out={place}", "draws=0")
        assert refused.returncode == 2 and "was not written by pml" in refused.stderr
    assert (tmp_path / "runs/run0/result.json").read_bytes() == kept
    assert quick("report", "runs/run0", "draws=0").returncode == 0
    assert (tmp_path / "runs/run0.html").exists()
    for place in (".", "samples/.."):
        (tmp_path / "runs/run0/samples").mkdir(exist_ok=True)
        paths = [tmp_path / "runs/run0" / place]
        assert report._file(paths, Report()) == tmp_path / "runs/run0.html"
    monkeypatch.chdir(tmp_path / "runs/run0")
    assert report._file([Path()], Report()) == tmp_path / "runs/run0.html"
    monkeypatch.chdir(tmp_path)
    assert quick("report", "runs", "out=new/", "draws=0").returncode == 0
    assert (tmp_path / "new/report.html").exists()

    refused = quick("report", "none")
    assert refused.returncode == 2 and "none" in refused.stderr
    (tmp_path / "empty").mkdir()
    assert quick("report", "empty").returncode == 2
    assert quick("report", "runs", "runs=999").returncode == 2


@pytest.mark.slow
def test_what_the_page_says_as_json(tmp_path, quick):
    saturated = result(16, 64, final_loss=0.1, seed=3)
    write(tmp_path / "runs", *grid(), *grid(loss="memft_margin", ranks=(4, 8)), saturated)
    failed = tmp_path / "runs" / "failed"
    failed.mkdir()
    (failed / "error.json").write_text('{"reason": "it burst"}')
    done = quick("report", "runs", "draws=20", "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert "written to runs/report.html" in done.stderr

    page = Tags((tmp_path / content["page"]).read_text("utf-8"))
    cells = json.loads(page.data)["audit"]
    assert content["cells"] == len(cells["id"])
    assert content["left_out"] == sum(bool(reason) for reason in cells["reason"]) > 0
    assert sum(content["reasons"].values()) == content["left_out"]
    assert content["failed"] == 1
    # What the page says first, to the letter.
    assert " ".join(content["verdict"].split()) in " ".join(" ".join(page.texts).split())
    assert content["verdict"].count(". ") == 3
