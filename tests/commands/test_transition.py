"""`pml transition`: planted violations, correlations, crossings and gatherings are found again; the report of real runs."""

import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats
from support.planted_laws import result

from pml_cli import cli
from pml_cli.analysis import first_failures, trajectories
from pml_cli.analysis import survival as waiting
from pml_cli.analysis import transition as phases
from pml_cli.commands import transition
from pml_cli.config.reports import Transition
from pml_cli.errors import UserError
from pml_cli.report.figures import style
from pml_cli.report.figures import transition as transition_plots
from pml_cli.report.figures.registry import of_report
from pml_cli.runs.folder import RunFolder
from pml_cli.stats import clustered_proportion

ROOT = Path(__file__).parents[2]
STEPS = (0, 10, 20, 30)
# p of six tokens at four steps; the crossings below are counted by hand
PLANTED = np.array([
    [0.10, 0.60, 0.01, 0.40, 0.50, 0.20],
    [0.60, 0.70, 0.02, 0.60, 0.50, 0.55],
    [0.70, 0.40, 0.30, 0.30, 0.49, 0.45],
    [0.80, 0.90, 0.40, 0.55, 0.51, 0.30],
])  # fmt: skip
RIGHT = PLANTED > 0.35


def table(p_TS=PLANTED, right_TS=RIGHT, steps=STEPS, samples=None):
    T, S = p_TS.shape
    sample = np.zeros(S, np.int32) if samples is None else np.asarray(samples, np.int32)
    position = np.concatenate([np.arange(n) for n in np.unique(sample, return_counts=True)[1]])
    token = np.arange(S) + 100
    return pd.DataFrame({
        "step": np.repeat(np.asarray(steps, np.int32), S), "sample": np.tile(sample, T),
        "position": np.tile(position, T).astype(np.int32), "token_id": np.tile(token, T).astype(np.int32),
        "nll": -np.log(p_TS.ravel()).astype(np.float32), "p": p_TS.ravel().astype(np.float32),
        "margin": np.where(right_TS, 1.0, -1.0).ravel().astype(np.float32),
        "argmax_id": np.where(right_TS.ravel(), np.tile(token, T), 7).astype(np.int32), "correct": right_TS.ravel(),
    })  # fmt: skip


def write(root, name, rows, **over):
    """A run folder whose result.json says of its tokens what the rows do."""
    folder = RunFolder(root, name)
    folder.path.mkdir(parents=True)
    folder.write_table(folder.tokens, rows)
    last = rows[rows["step"] == rows["step"].max()]
    wrong = last[~last["correct"]]
    found = {
        "token_accuracy": float(last["correct"].mean()), "exact_match": float(last["correct"].all()),
        "free_accuracy": float(last["correct"].mean()), "target_tokens": len(last), "seqlen": len(last),
        "final_loss": float(last["nll"].mean()), "first_failure": int(wrong["position"].min()) if len(wrong) else None,
    }  # fmt: skip
    folder.finish(result(4, len(last)) | found | over)


def report(*paths, width=80, **settings):
    shown = io.StringIO()
    settings = {"figures": False, "draws": 100} | settings
    code = transition.run(list(paths), Transition(**settings), Console(file=shown, width=width))
    return code, shown.getvalue()


def paths_of(tmp_path, rows):
    rows.to_parquet(tmp_path / "tokens.parquet", index=False)
    return trajectories.read(tmp_path / "tokens.parquet")


def test_crossings_and_falls_of_planted_tokens(tmp_path):
    found = paths_of(tmp_path, table())
    assert found.steps.tolist() == list(STEPS)
    assert found.since_S.tolist() == [
        10,
        30,
        -1,
        30,
        30,
        -1,
    ]  # 0.5 is not above; a token that fell counts from its return
    assert found.falls_S.tolist() == [0, 1, 0, 1, 0, 1]
    assert found.ever_S.tolist() == [True, True, False, True, True, True]
    assert found.losses_S.tolist() == [0, 0, 0, 1, 0, 1]  # decoded, then not
    assert found.tokens_B.sum() == 24 and found.tokens_B[10:].sum() == (PLANTED > 0.5).sum() == 10
    assert found.tokens_B[9] == 3  # 0.50, 0.50, 0.49: the bin up to and with 0.5
    assert found.right_B.sum() == RIGHT.sum()
    assert found.highest_wrong == pytest.approx(0.3) and found.lowest_right == pytest.approx(0.4)
    assert found.violations == 0


@pytest.mark.parametrize("rows", [6, 7, 13, 1000])
def test_reading_in_pieces_changes_nothing(tmp_path, monkeypatch, rows):
    rng = np.random.default_rng(5)
    p = rng.random((9, 6))
    samples = [0, 0, 1, 1, 1, 2]
    right = (p > 0.3) & (rng.random(p.shape) > 0.2)
    whole = paths_of(tmp_path, table(p, right, range(9), samples))
    monkeypatch.setattr(trajectories, "ROWS", rows)
    pieces = trajectories.read(tmp_path / "tokens.parquet")
    assert whole.violations == ((p.astype(np.float32) > 0.5) & ~right).sum() > 0
    for name in vars(whole):
        got, expected = getattr(pieces, name), getattr(whole, name)
        assert (
            got == expected if isinstance(expected, list | int | float) else (got == expected).all()
        ), name
    above = p.astype(np.float32) > 0.5
    falls = [sum(a and not b for a, b in pairwise(column)) for column in above.T.tolist()]
    assert whole.falls_S.tolist() == falls


def test_every_planted_violation_is_listed_with_what_may_have_caused_it(tmp_path):
    right = RIGHT.copy()
    right[1, 0] = right[3, 1] = False
    write(tmp_path, "wrong", table(right_TS=right))
    write(tmp_path, "good", table(), seed=1)
    write(tmp_path, "coarse", table(), setting="model.dtype=bfloat16 data.random_share=0.4")
    code, shown = report(tmp_path)
    told = json.loads((tmp_path / "transition/transition.json").read_text("utf-8"))
    by = {row["dtype"]: row for row in told["by_dtype"]}
    assert code == 0
    assert (by["float32"]["logged"], by["float32"]["above"], by["float32"]["violations"]) == (
        48,
        20,
        2,
    )
    assert (by["bfloat16"]["logged"], by["bfloat16"]["violations"]) == (24, 0)
    assert by["float32"]["highest_wrong"] == pytest.approx(0.9)
    listed = pd.read_csv(tmp_path / "transition/violations.csv")
    assert listed[["step", "position", "token_id", "argmax_id"]].to_numpy().tolist() == [
        [10, 0, 100, 7],
        [30, 1, 101, 7],
    ]
    assert listed["p"].tolist() == pytest.approx([0.6, 0.9]) and listed["margin"].tolist() == [
        -1,
        -1,
    ]
    assert listed["nll"].tolist() == pytest.approx([-np.log(0.6), -np.log(0.9)], rel=1e-5)
    words = " ".join(shown.split())
    assert (
        "float32: 2 violations" in words
        and "bfloat16: sufficient, no violation in 10 tokens" in words
    )
    assert "0.9000000" in words


def test_violations_beyond_those_listed_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(trajectories, "MOST_LISTED", 3)
    found = paths_of(tmp_path, table(right_TS=np.zeros_like(RIGHT)))
    assert found.violations == 10 and len(found.offenders) == 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.iloc[:0], "no token was logged"),
        (lambda t: t.drop(columns="p"), "no column p"),
        (lambda t: t.iloc[:-1], "steps differ in their number of tokens"),
        (
            lambda t: t.assign(position=np.r_[t["position"][:-1], 9].astype(np.int32)),
            "steps differ in their tokens",
        ),
        (lambda t: t.iloc[np.r_[6:12, 0:6, 12:24]], "steps do not ascend"),
    ],
)
def test_files_that_are_no_table_of_steps_and_tokens(tmp_path, monkeypatch, spoil, words):
    monkeypatch.setattr(trajectories, "ROWS", 6)
    with pytest.raises(trajectories.IrregularError, match=words):
        paths_of(tmp_path, spoil(table()))


def test_sequences_of_several_samples(tmp_path):
    found, stubborn = phases.sequences(paths_of(tmp_path, table(samples=[0, 0, 0, 0, 1, 1])))
    assert found["length"].tolist() == [4, 2]
    assert found["earliest_stubborn"].tolist() == [2, 1]
    assert np.isnan(found["first_failure"][0]) and found["first_failure"][1] == 1
    assert [positions.tolist() for positions in stubborn] == [[2], [1]]


def test_spearman_over_counts_equals_scipy_with_ties():
    rng = np.random.default_rng(2)
    x = rng.integers(0, 6, 80).astype(float)
    y = x + rng.integers(0, 9, 80)
    pairs, counts = np.unique(np.stack([x, y]), axis=1, return_counts=True)
    assert first_failures.spearman(pairs, counts[None])[0] == pytest.approx(
        stats.spearmanr(x, y).statistic, abs=1e-12
    )


def planted_sequences(noise, count=200, clusters=20):
    rng = np.random.default_rng(4)
    x = rng.integers(0, 300, count).astype(float)
    y = x + rng.integers(0, noise + 1, count)
    return pd.DataFrame({"cluster": np.arange(count) % clusters, "length": 1000, "wrong": 1, "earliest_stubborn": x,
                         "first_failure": y})  # fmt: skip


def test_planted_correlation_and_what_never_came():
    found = planted_sequences(noise=200)
    expected = stats.spearmanr(found["earliest_stubborn"], found["first_failure"]).statistic
    found.loc[:9, "first_failure"] = np.nan  # stubborn tokens, no failure
    found.loc[:3, "earliest_stubborn"] = np.nan  # neither
    stubborn = [
        np.array([x], np.int64) if np.isfinite(x) else np.array([], np.int64)
        for x in found["earliest_stubborn"]
    ]
    a = first_failures.agree(found, stubborn, draws=400)
    assert (a.both.n, a.neither, a.no_failure, a.no_stubborn, a.censored.n) == (190, 4, 6, 0, 200)
    assert a.both.rho == pytest.approx(expected, abs=0.05) and a.both.low < a.both.rho < a.both.high
    filled = found.fillna({"earliest_stubborn": 1000, "first_failure": 1000})
    censored = stats.spearmanr(filled["earliest_stubborn"], filled["first_failure"]).statistic
    assert a.censored.rho == pytest.approx(censored, abs=1e-12)
    gaps = (found["first_failure"] - found["earliest_stubborn"]).dropna()
    assert a.gap == gaps.median() and a.same == (gaps == 0).sum()
    assert a.chance == pytest.approx(
        1
    )  # one stubborn token each: by chance too it is the one that fails


def test_interval_of_rho_covers_the_truth_and_widens_with_clusters():
    rng = np.random.default_rng(8)
    truth, covered, widths = 6 / np.pi * np.arcsin(0.6 / 2), 0, []
    for _ in range(60):
        z = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 150).T
        one = first_failures.correlation(z[0], z[1], np.arange(150) % 30, 200, rng)
        covered += one.low <= truth <= one.high
        widths.append(one.high - one.low)
    assert covered >= 52  # of 60 at 95 %
    z = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 10).T.repeat(
        15, axis=1
    )  # ten distinct cells
    assert first_failures.correlation(z[0], z[1], np.arange(150) // 15, 200, rng).high > truth
    assert first_failures.correlation(z[0], z[1], np.arange(150) % 3, 200, rng).reason.startswith(
        "no interval: 3 texts"
    )
    same = first_failures.correlation(np.ones(9), np.arange(9.0), np.arange(9), 50, rng)
    assert np.isnan(same.rho) and same.reason == "one of the two never varies"


def test_first_of_random_indices_has_the_right_distribution():
    drawn = first_failures.first_of_random(
        np.array([5, 4, 3]), np.array([2, 4, 1]), 40_000, np.random.default_rng(0)
    )
    share = np.bincount(drawn[0], minlength=4) / 40_000
    assert share == pytest.approx([4 / 10, 3 / 10, 2 / 10, 1 / 10], abs=0.01)  # of 10 pairs of five
    assert (drawn[1] == 0).all()
    assert np.bincount(drawn[2]) / 40_000 == pytest.approx([1 / 3] * 3, abs=0.01)


def test_where_first_failures_gather_against_chance():
    rng = np.random.default_rng(1)
    spread = pd.DataFrame(
        {
            "data_seed": 0,
            "sample": 0,
            "length": 400,
            "wrong": 1,
            "first_failure": rng.integers(0, 400, 40),
        }
    )
    gathered = spread.assign(
        data_seed=1, first_failure=np.where(np.arange(40) < 12, 153, spread["first_failure"])
    )
    found = first_failures.gather(pd.concat([spread, gathered]).astype({"first_failure": float}))
    by = found.texts.set_index("data_seed")
    assert by.loc[1, "position"] == 153 and by.loc[1, "share"] == pytest.approx(0.3, abs=0.03)
    assert by.loc[1, "p"] < 0.01 < 0.05 < by.loc[0, "p"]
    everywhere_wrong = spread.assign(
        wrong=400, first_failure=0.0
    )  # all fail at the first token, as they must
    certain = first_failures.gather(everywhere_wrong)
    assert certain.share == certain.chance == 1 and certain.p == 1


def test_share_is_wilson_s_and_widens_with_the_spread_between_clusters():
    assert (
        clustered_proportion([3], [10]).low,
        clustered_proportion([3], [10]).high,
    ) == pytest.approx((0.1078, 0.6032), abs=1e-4)
    alike, apart = (
        clustered_proportion([50] * 10, [100] * 10),
        clustered_proportion([0, 100] * 5, [100] * 10),
    )
    assert alike.value == apart.value == 0.5
    assert apart.high - apart.low > 5 * (alike.high - alike.low)
    assert clustered_proportion([100] * 5, [100] * 5).high == 1 and np.isnan(
        clustered_proportion([], []).value
    )
    rng, covered = np.random.default_rng(3), 0
    for _ in range(300):
        of = rng.integers(20, 200, 25)
        one = clustered_proportion(
            rng.binomial(of, rng.beta(3, 7, 25)), of
        )  # clusters differ; the mean is 0.3
        covered += one.low <= 0.3 <= one.high
    assert 270 <= covered <= 297


def test_survival_is_kaplan_meier_s():
    counts = pd.DataFrame({"step": [0, 10, 20, 30], "crossed": [1, 3, 0, 2], "left": [0, 1, 2, 1]})
    curve = waiting.survival(counts)
    assert curve["at_risk"].tolist() == [10, 9, 5, 3]
    assert curve["stubborn"].tolist() == pytest.approx([0.9, 0.9 * 6 / 9, 0.6, 0.6 / 3])
    assert waiting.median(curve) == 30 and np.isnan(waiting.median(curve.head(3)))


def test_the_report_of_planted_runs(tmp_path):
    write(tmp_path, "a", table(), rank=2)
    perfect = np.full_like(PLANTED, 0.9)
    write(tmp_path, "b", table(perfect, perfect > 0.5), rank=8)
    high = np.full_like(PLANTED, 0.2)
    write(
        tmp_path, "c", table(high, high > 0), rank=8, data_seed=1
    )  # every token right at p 0.2: not verbatim by its loss
    write(
        tmp_path,
        "d",
        table(np.full_like(PLANTED, 0.6), RIGHT),
        rank=8,
        data_seed=2,
        exact_match=0.0,
        violations=0,
    )
    (group,) = _groups(tmp_path)
    waits = {row["rank"]: row for row in group["by_rank"]}
    assert (
        waits[2]["tokens"],
        waits[2]["above"],
        waits[2]["ever"],
        waits[2]["fell"],
        waits[2]["lost"],
    ) == (6, 4, 5, 3, 1)
    assert waits[2]["median_step"] == 30 and waits[8]["above"] == 12
    mixed = {
        name: (share["found"], share["of"]) for name, share in group["loss_against_recall"].items()
    }
    assert (
        mixed["high_loss_verbatim"] == (1, 1)
        and mixed["low_loss_not_verbatim"] == (2, 3)
        and mixed["either"] == (3, 4)
    )
    assert mixed["stubborn_verbatim"] == (1, 2)
    cells = pd.read_csv(tmp_path / "transition/cells.csv").set_index("rank")
    assert (
        cells.loc[2, "falls"] == 3
        and cells.loc[2, "forgot"] == 2
        and cells.loc[2, "highest_wrong"] == pytest.approx(0.3)
    )
    sequences = pd.read_csv(tmp_path / "transition/sequences.csv")
    assert sequences.loc[
        sequences["rank"] == 2, ["earliest_stubborn", "first_failure"]
    ].to_numpy().tolist() == [[2, 5]]


def _groups(folder):
    report(folder)
    return json.loads((folder / "transition/transition.json").read_text("utf-8"))["groups"]


def test_accuracy_behind_the_first_failure(tmp_path):
    right = np.array([[1, 1, 0, 1, 0, 1, 1, 0, 1, 1]], bool)
    p = np.where(right, 0.9, 0.1)
    write(
        tmp_path, "a", table(p, right, (5,)), free_accuracy=0.3
    )  # decoded freely: two right before, one behind
    write(tmp_path, "b", table(p, right, (5,)), seed=1, free_accuracy=None)  # never decoded
    rest = _groups(tmp_path)[0]["behind_first_failure"]
    assert (rest["free"]["found"], rest["free"]["of"]) == (1, 7)
    assert (rest["forced"]["found"], rest["forced"]["of"]) == (5, 7)


def test_groups_filters_and_copies(tmp_path):
    write(tmp_path / "x", "a", table(), rank=2)
    write(tmp_path / "x", "b", table(), rank=8, loss="memft_ot")
    write(tmp_path / "y", "a", table(), rank=2)  # a copy
    code, shown = report(tmp_path)
    assert code == 0 and "2 groups that differ in loss" in shown
    told = json.loads((tmp_path / "transition/transition.json").read_text("utf-8"))
    assert told["inputs"]["runs"] == 2 and [g["key"]["loss"] for g in told["groups"]] == [
        "memft_ot",
        "sft",
    ]
    assert "1 runs" in report(tmp_path, rank=[8])[1]
    for settings, words in (
        ({"rank": [3]}, "rank=3: no finished run has it"),
        ({"seqlen": [7]}, "seqlen=7: no finished run has it"),
        ({"text": 5}, "text=5: no finished run has this data.seed; there are 0"),
    ):
        with pytest.raises(UserError, match=words):
            report(tmp_path, **settings)


def test_damaged_runs_are_left_out_and_said(tmp_path):
    write(tmp_path, "good", table())
    write(tmp_path, "gone", table(), seed=1)
    write(tmp_path, "torn", table(), seed=2)
    (tmp_path / "gone/tokens.parquet").unlink()
    (tmp_path / "torn/tokens.parquet").write_bytes(b"PAR1")
    shown = " ".join(report(tmp_path)[1].split())
    assert "2 runs left out" in shown and "no tokens.parquet" in shown
    left = json.loads((tmp_path / "transition/transition.json").read_text("utf-8"))["inputs"][
        "left_out"
    ]
    assert sorted(Path(one["folder"]).name for one in left) == ["gone", "torn"]
    (tmp_path / "good/tokens.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="nothing is left to report on"):
        report(tmp_path)


def test_figures_show_what_was_planted(tmp_path, monkeypatch):
    monkeypatch.setattr(
        style, "save", lambda figure, path, form: path.write_text(form)
    )  # drawing takes long
    for rank in (2, 4, 8):
        p = np.clip(PLANTED * rank / 4, 0, 0.99)
        write(tmp_path, f"r{rank}", table(p, p > 0.35), rank=rank)
    report(tmp_path, figures=True)
    out = tmp_path / "transition"
    assert {path.name for path in out.glob("transition.*")} == {
        "transition.json",
        "transition.png",
        "transition.svg",
    }
    assert {path.stem for path in (out / "figures").glob("*.png")} == set(
        of_report("transition")
    ) - {"transition"}
    runs = transition._asked(transition._finished([tmp_path]), Transition(), [tmp_path])
    group = phases.phases("name", "slug", {}, phases.read(runs, lambda: None), draws=0, text=None)
    page = io.BytesIO()
    transition_plots.page_figure(group).savefig(page, format="png", dpi=40)
    assert len(page.getvalue()) > 10_000
    (grid,) = group.grids
    assert grid.ranks.tolist() == [2, 4, 8] and grid.p_RS[1] == pytest.approx(
        PLANTED[-1].astype(np.float32)
    )
    lightness = (
        np.array([0.299, 0.587, 0.114])
        @ transition_plots.stubborn_map()(np.linspace(0, 1, 256))[:, :3].T
    )
    assert (np.diff(lightness) > -1e-9).all() and lightness[128] - lightness[
        127
    ] > 0.1  # reads in grey, jumps at 0.5


def test_piped_output_is_plain_text_that_fits(tmp_path):
    write(tmp_path, "a", table(), rank=2)
    write(tmp_path, "b", table(), rank=4)
    for width in (80, 140):
        shown = report(tmp_path, width=width)[1]
        assert shown.isascii() and "\x1b" not in shown
        assert max(map(len, shown.splitlines())) <= width


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    words = [
        "rank=1,4",
        "seqlen=12",
        "data=text",
        "train.steps=20",
        "train.log_every=4",
        f"out={out}",
    ]
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", *words])
    assert not stop.value.code
    return out


def test_real_runs_from_the_command_line(swept, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["transition", str(swept), f"out={tmp_path}/report", "figures=false", "draws=50"])
    assert not stop.value.code
    assert "float32: sufficient, no violation" in capsys.readouterr().out
    told = json.loads((tmp_path / "report/transition.json").read_text("utf-8"))
    files = list(swept.glob("*/tokens.parquet"))
    assert (
        told["inputs"]["logged_tokens"]
        == sum(pq.read_metadata(path).num_rows for path in files)
        == 2 * 6 * 12
    )
    cells = pd.read_csv(tmp_path / "report/cells.csv").set_index("id")
    for path in swept.glob("*/result.json"):
        run = json.loads(path.read_text("utf-8"))
        cell = cells.loc[run["id"]]
        assert (
            cell["stubborn"] == run["stubborn_tokens"]
            and cell["violations"] == run["violations"] == 0
        )
    sequences = pd.read_csv(tmp_path / "report/sequences.csv").set_index("id")
    for path in swept.glob("*/result.json"):
        run = json.loads(path.read_text("utf-8"))
        for name in ("first_failure", "earliest_stubborn"):
            value = sequences.loc[run["id"], name]
            assert (None if np.isnan(value) else value) == run[name]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere"], "error: nowhere: no such folder"),
        (["empty"], "error: empty: no finished runs"),
        (["empty", "rnak=4"], "error: rnak: no such key; did you mean 'rank'?"),
        (["empty", "rank=0"], "error: rank=0: must be at least 1"),
        (["empty", "draws=-1"], "error: draws=-1: must be at least 0"),
        (["empty", "text=0,1"], "error: text: takes one value, not 2"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words, expected, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["transition", *words])
    shown = capsys.readouterr()
    assert stop.value.code == 2 and shown.out == ""
    assert shown.err.startswith(expected) and len(shown.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"] and not list(
        (tmp_path / "empty").iterdir()
    )


def test_reads_runs_without_torch():
    code = "import sys; import pml_cli.commands.transition, pml_cli.report.figures.transition; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"
