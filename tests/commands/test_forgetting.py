"""`pml forgetting`: what it measures, as transformers and PEFT see it, once for each run."""

import json
import shutil

import pandas as pd
import pytest
import torch
from real import plain

from pml_cli import cli
from pml_cli.config.schema import TINY, Model
from pml_cli.data.generic_text import generic_pool
from pml_cli.evaluation import forgetting_runs

KINDS = ["prose", "docs", "code", "chat"]


@pytest.fixture
def forgetting(capsys):
    """forgetting(...): exit code, standard output and standard error."""

    def run(*args):
        with pytest.raises(SystemExit) as stop:
            cli.main(["forgetting", *map(str, args), "device=cpu"])
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Linear adapters: without and with a penalty, of one text; and one beside the MLP."""
    out = tmp_path_factory.mktemp("runs")
    common = ["seqlen=12", "rank=4", "train.steps=30", "train.lr=0.04", "train.decode=false"]
    sweeps = [
        ["adapter=linear", "loss.keep=0,30", f"out={out}/linear"],
        ["loss=memft_margin", f"out={out}/block"],
    ]
    for args in sweeps:
        with pytest.raises(SystemExit) as stop:
            cli.main(["sweep", *args, *common])
        assert not stop.value.code
    return out


@pytest.fixture(scope="module")
def measured(swept):
    """The folder of the linear runs, with the report on them."""
    with pytest.raises(SystemExit) as stop:
        kinds = f"kinds={','.join(KINDS)}"
        cli.main(["forgetting", f"{swept}/linear", kinds, "device=cpu"])
    assert not stop.value.code
    return swept / "linear"


def test_as_transformers_and_peft_compute_it(measured):
    """Both placements are compared in tests/evaluation."""
    table = pd.read_csv(measured / "forgetting.csv")
    row = table[(table["kind"] == "chat") & table["penalty"].isna()].iloc[0]
    windows = generic_pool(Model(), "chat", "held_out").windows
    base = plain.load_base(TINY)
    adapted = plain.load_adapted(TINY, f"{row['folder']}/adapter")

    losses = {"before": [], "after": []}
    divergence, changed = [], []
    for window in windows:
        before = plain.logits(base, window.prompt, window.target)
        after = plain.logits(adapted, window.prompt, window.target)
        target = torch.tensor(window.target)
        losses["before"].append(torch.nn.functional.cross_entropy(before, target).item())
        losses["after"].append(torch.nn.functional.cross_entropy(after, target).item())
        log_p = before.log_softmax(1)
        divergence.append((log_p.exp() * (log_p - after.log_softmax(1))).sum(1).mean().item())
        changed.append((before.argmax(1) != after.argmax(1)).float().mean().item())

    before, after = (pd.Series(values) for values in losses.values())
    assert row["tokens"] == 256 * len(windows)
    assert row["text_base_loss"] == pytest.approx(before.mean(), abs=1e-5)
    assert row["text_loss"] == pytest.approx(after.mean(), abs=1e-5)
    assert row["harm"] == pytest.approx((after - before).mean(), abs=1e-5)
    assert row["harm_se"] == pytest.approx((after - before).sem(), abs=1e-5)
    assert row["kl"] == pytest.approx(pd.Series(divergence).mean(), abs=1e-5)
    assert row["changed"] == pytest.approx(pd.Series(changed).mean(), abs=1e-3)
    assert row["harm"] > 0.05


def test_what_is_reported(measured):
    table = pd.read_csv(measured / "forgetting.csv")
    assert list(table["kind"]) == [*KINDS, "all"] * 2
    for _, of_run in table.groupby("id"):
        *kinds, overall = of_run.to_dict("records")
        harms = [row["harm"] for row in kinds]
        assert overall["harm"] == pytest.approx(sum(harms) / 4)
        assert overall["harm_low"] < overall["harm"] < overall["harm_high"]

    content = json.loads((measured / "forgetting.json").read_text())
    free, kept = sorted(content["groups"], key=lambda row: row["keep"])
    assert (free["method"], free["penalty"]) == ("sft", "")
    assert (kept["method"], kept["penalty"]) == ("sft", "keep=30")
    assert kept["harm"] < free["harm"] / 3
    # Of a single run the interval is that over windows.
    assert free["harm_low"] == table["harm_low"].max()
    assert (measured / "forgetting.png").stat().st_size > 20_000
    assert "](forgetting.png): " in (measured / "index.md").read_text("utf-8")


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again(swept, measured, forgetting, monkeypatch):
    """A run that is new is, and kinds that were not asked for before."""
    csv = (measured / "forgetting.csv").read_bytes()
    kinds = f"kinds={','.join(KINDS)}"
    with monkeypatch.context() as patch:
        patch.setattr(forgetting_runs, "measure", lambda *_, **__: pytest.fail("again"))
        code, text, _ = forgetting(measured, kinds, "figures=false", "--json")
    assert code == 0
    assert len(json.loads(text)["runs"]) == 2
    assert (measured / "forgetting.csv").read_bytes() == csv

    other = swept / "other"
    other.mkdir()
    shutil.copy(measured / "forgetting.json", other)
    folders = [swept / "linear", swept / "block", f"out={other}"]
    code, text, _ = forgetting(*folders, kinds, "figures=false")
    assert "3 runs, 1 of them measured now" in " ".join(text.split())
    code, text, _ = forgetting(swept / "block", f"out={other}", "kinds=chat", "figures=false")
    assert "1 run, 1 of them measured now" in " ".join(text.split())
    assert "harm: not measured on all of prose, docs, code and chat" in " ".join(text.split())
    assert len(json.loads((other / "forgetting.json").read_text())["runs"]) == 3


@pytest.mark.slow
def test_interrupted_it_goes_on(swept, forgetting, monkeypatch, tmp_path):
    """What was measured before is kept: each run is written down as it is done."""
    args = [swept / "linear", f"out={tmp_path}/o", "kinds=code", "figures=false"]
    monkeypatch.setattr(forgetting_runs, "RUNS_AT_ONCE", 1)
    with monkeypatch.context() as patch:
        entries = iter([{"harm": None, "harm_low": None, "harm_high": None, "kinds": {}}])

        def interrupt(_windows):
            for entry in entries:
                return entry
            raise KeyboardInterrupt

        patch.setattr(forgetting_runs, "entry_of", interrupt)
        code, out, _ = forgetting(*args)
    assert code == 130
    assert "the same command continues" in out
    assert len(json.loads((tmp_path / "o" / "forgetting.json").read_text())["runs"]) == 1
    code, out, _ = forgetting(*args)
    assert "2 runs, 1 of them measured now" in " ".join(out.split())


@pytest.mark.slow
def test_a_text_of_the_user_and_the_models_own(swept, forgetting, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("The pump in hall 3 was replaced on Monday, and nobody told the office. " * 80)
    code, out, _ = forgetting(swept / "block", "kinds=own", f"text={text}", f"out={tmp_path}/o")
    assert code == 0
    table = pd.read_csv(tmp_path / "o" / "forgetting.csv").set_index("kind")
    assert list(table.index) == ["file", "own"]
    assert table.loc["own", "tokens"] == 12 * 256
    assert table.loc["own", "harm"] == pytest.approx(table.loc["own", "kl"], rel=0.5)
    assert "file" in out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["kinds=poems"], "kinds=poems: must be one of prose, docs, code, chat, own"),
        (["kinds=[chat,chat]"], "kinds=chat,chat: each kind once"),
        (["kinds=[]"], "kinds=[]: give a kind, or text=FILE"),
        (["text=none.txt"], "text=none.txt: no such file"),
        (["kind=chat"], "kind: no such key; did you mean 'kinds'?"),
    ],
)
def test_bad_input_is_one_line(swept, forgetting, settings, message):
    code, out, err = forgetting(swept / "block", *settings)
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1
    assert not (swept / "block" / "forgetting.json").exists()


def test_a_run_without_an_adapter_is_left_out(measured, forgetting, tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(measured, copy)
    (copy / "forgetting.json").unlink()
    first, second = sorted(path.parent for path in copy.glob("*/result.json"))
    shutil.rmtree(first / "adapter")
    code, _, err = forgetting(copy, "kinds=chat", "figures=false")
    assert code == 0
    assert f"left out: {first}: this run has no adapter/" in err
    shutil.rmtree(second / "adapter")
    code, _, err = forgetting(copy, "kinds=chat", "figures=false")
    assert code == 2 and len(err.splitlines()) == 2
