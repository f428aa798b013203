"""The summary of one group of runs, counted by hand from planted tokens."""

import numpy as np
import pandas as pd
import pytest
from support.token_tables import PLANTED_P, token_table, write_run

from pml_cli.analysis import trajectories
from pml_cli.analysis.run_selection import transition_runs
from pml_cli.analysis.transition import (
    final_sequences,
    model_dtype,
    read_group,
    stubborn_grids,
    summarize,
    violations_by_dtype,
)
from pml_cli.config.reports import Transition
from pml_cli.errors import UserError


def summary_of(folder, text=None):
    runs = transition_runs([folder], Transition())
    tokens = read_group(runs, lambda: None)
    return summarize(tokens, name="name", slug="slug", key={}, draws=0, text=text)


def counts(proportion):
    return proportion.successes, proportion.trials


def test_sequences_of_several_samples(tmp_path):
    path = tmp_path / "tokens.parquet"
    token_table(samples=[0, 0, 0, 0, 1, 1]).to_parquet(path, index=False)
    table, stubborn = final_sequences(trajectories.read(path))
    assert table["length"].tolist() == [4, 2]
    assert table["earliest_stubborn"].tolist() == [2, 1]
    assert np.isnan(table["first_failure"][0]) and table["first_failure"][1] == 1
    assert [positions.tolist() for positions in stubborn] == [[2], [1]]


def test_recall_above_and_below_one_half(tmp_path):
    write_run(tmp_path, "a", token_table())
    summary = summary_of(tmp_path)
    # Ten of the 24 logged tokens have p > 0.5; of the other 14, 7 are above 0.35, so right.
    assert counts(summary.recall_above) == (10, 10)
    assert counts(summary.recall_below) == (7, 14)
    bins = summary.recall_by_p.set_index("high_p")
    assert bins.loc[0.5, ["tokens", "right"]].tolist() == [3, 3]
    assert bins["tokens"].sum() == 24


def test_counts_of_a_run_and_survival_by_rank(tmp_path):
    write_run(tmp_path, "a", token_table(), rank=2)
    perfect = np.full_like(PLANTED_P, 0.9)
    write_run(tmp_path, "b", token_table(perfect, perfect > 0.5), rank=8)
    summary = summary_of(tmp_path)

    cell = summary.cells.set_index("rank").loc[2]
    assert (cell["falls"], cell["forgot"], cell["stubborn"]) == (3, 2, 2)
    assert cell["highest_wrong"] == pytest.approx(0.3)
    by_rank = summary.survival_by_rank.set_index("rank")
    planted = by_rank.loc[2]
    assert planted[["tokens", "above", "ever", "fell", "lost"]].tolist() == [6, 4, 5, 3, 1]
    assert planted["median_step"] == 30
    assert by_rank.loc[8, "above"] == 6 and by_rank.loc[8, "median_step"] == 0


def test_where_loss_and_recall_disagree(tmp_path):
    write_run(tmp_path, "planted", token_table(), rank=2)
    confident = np.full_like(PLANTED_P, 0.9)
    write_run(tmp_path, "verbatim", token_table(confident, confident > 0.5), rank=8)
    # Every token right at p = 0.2: verbatim in spite of its loss.
    unsure = np.full_like(PLANTED_P, 0.2)
    write_run(tmp_path, "unsure", token_table(unsure, unsure > 0), rank=8, data_seed=1)
    low_loss = token_table(np.full_like(PLANTED_P, 0.6))
    write_run(tmp_path, "wrong", low_loss, rank=8, data_seed=2, exact_match=0.0)

    cases = summary_of(tmp_path).loss_against_recall
    assert counts(cases["high_loss_verbatim"]) == (1, 1)
    assert counts(cases["low_loss_not_verbatim"]) == (2, 3)
    assert counts(cases["either"]) == (3, 4)
    assert counts(cases["stubborn_verbatim"]) == (1, 2)


def test_accuracy_behind_the_first_failure(tmp_path):
    correct = np.array([[1, 1, 0, 1, 0, 1, 1, 0, 1, 1]], bool)
    p = np.where(correct, 0.9, 0.1)
    # Decoded freely, three of ten are right: two before the failure, so one behind it.
    write_run(tmp_path, "a", token_table(p, correct, (5,)), free_accuracy=0.3)
    write_run(tmp_path, "never_decoded", token_table(p, correct, (5,)), seed=1, free_accuracy=None)
    behind = summary_of(tmp_path).behind_failure
    assert counts(behind["free"]) == (1, 7)
    assert counts(behind["forced"]) == (5, 7)


def test_accuracies_of_tokens_with_gaps_stay_between_none_and_all(tmp_path):
    wrong = np.full((1, 6), 0.1)
    rows = token_table(wrong, wrong > 0.5, (5,))
    write_run(tmp_path, "a", rows.assign(position=rows["position"] + 1), free_accuracy=0.0)
    forced = summary_of(tmp_path).behind_failure["forced"]
    assert counts(forced) == (0, 4)


def test_violations_by_dtype(tmp_path):
    wrong = PLANTED_P > 0.35
    wrong[1, 0] = False
    write_run(tmp_path, "a", token_table(correct_TS=wrong))
    write_run(tmp_path, "b", token_table(), seed=1, setting="model.dtype=bfloat16 data.random=1")
    runs = transition_runs([tmp_path], Transition())
    table = violations_by_dtype(pd.DataFrame(read_group(runs, lambda: None).cells))
    rows = table.set_index("dtype")
    columns = ["runs", "logged", "above", "below", "violations", "below_right"]
    assert rows.loc["float32", columns].tolist() == [1, 24, 10, 14, 1, 7]
    assert rows.loc["bfloat16", columns].tolist() == [1, 24, 10, 14, 0, 7]
    assert rows.loc["float32", "highest_wrong"] == pytest.approx(0.6)
    assert model_dtype("train.lr=1 model.dtype=float64") == "float64"
    assert model_dtype(None) == model_dtype("") == "float32"


def test_the_stubborn_grid_holds_the_final_p_of_each_rank(tmp_path):
    for rank in (2, 4, 8):
        p = np.clip(PLANTED_P * rank / 4, 0, 0.99)
        write_run(tmp_path, f"r{rank}", token_table(p, p > 0.35), rank=rank)
    repeat = np.full_like(PLANTED_P, 0.9)
    write_run(tmp_path, "repeat", token_table(repeat, repeat > 0), rank=4, seed=1)
    (grid,) = summary_of(tmp_path).grids
    assert grid.ranks.tolist() == [2, 4, 8]
    # Of repeats the lowest seed is shown.
    assert grid.p_RS[1] == pytest.approx(PLANTED_P[-1].astype(np.float32))
    assert (grid.text, grid.length, grid.samples, grid.seed) == (0, 6, 1, 0)
    assert summary_of(tmp_path, text=5).grids == []


def test_the_grid_starts_with_the_length_that_shows_most(tmp_path):
    shares = {4: 1.0, 5: 0.4, 6: 0.0, 7: 0.9, 8: 0.1}
    for length, share in shares.items():
        p = np.where(np.arange(length) < round(share * length), 0.9, 0.1)[None]
        write_run(tmp_path, f"l{length}", token_table(p, p > 0.5, (5,)))
    runs = transition_runs([tmp_path], Transition())
    cells = pd.DataFrame(read_group(runs, lambda: None).cells)
    assert [grid.length for grid in stubborn_grids(cells, None)] == [5, 4, 7, 8]


def test_runs_are_selected_and_copies_left_out(tmp_path):
    write_run(tmp_path / "x", "a-0123456789", token_table(), rank=2)
    write_run(tmp_path / "x", "b", token_table(), rank=8)
    write_run(tmp_path / "copy", "a-0123456789", token_table(), rank=2)
    notes = []
    assert len(transition_runs([tmp_path], Transition(), notes)) == 2
    assert notes[0].startswith("1 duplicate run ignored: ")
    assert transition_runs([tmp_path], Transition(rank=[8]))["rank"].tolist() == [8]
    for settings, message in (
        (Transition(rank=[3]), "rank=3: no finished run has it; .* has 2, 8"),
        (Transition(seqlen=[7]), "seqlen=7: no finished run has it"),
        (Transition(text=5), "text=5: no finished run has it as data.seed; .* has 0$"),
    ):
        with pytest.raises(UserError, match=message):
            transition_runs([tmp_path], settings)


def test_clusters_are_those_of_a_group_after_the_selection(tmp_path):
    """Four texts under one loss are no units of the two under another, nor of a selected length."""
    p_by_length = {length: np.full((1, length), 0.9) for length in (4, 6)}
    for loss, texts in (("sft", 4), ("memft_ot", 2)):
        for text in range(texts):
            for length, p in p_by_length.items():
                fields = {"loss": loss, "data_seed": text}
                name = f"{loss}-{text}-{length}"
                write_run(tmp_path, name, token_table(p, p > 0.5, (5,)), **fields)

    clusters = transition_runs([tmp_path], Transition()).groupby("loss")["cluster"].nunique()
    assert clusters.to_dict() == {"sft": 4, "memft_ot": 4}

    runs = transition_runs([tmp_path], Transition(seqlen=[4]))
    intervals = {}
    for loss, group in runs.groupby("loss"):
        tokens = read_group(group, lambda: None)
        summary = summarize(tokens, name="x", slug="x", key={}, draws=0, text=None)
        assert counts(summary.recall_above) == ((16, 16) if loss == "sft" else (8, 8))
        intervals[loss] = summary.recall_above.low
    assert 0 < intervals["sft"] < 1 and np.isnan(intervals["memft_ot"])


def test_a_run_without_its_rank_is_named(tmp_path):
    write_run(tmp_path, "a", token_table(), rank=None)
    with pytest.raises(UserError, match=r"a.result\.json: rank or target_tokens is missing"):
        transition_runs([tmp_path], Transition())
