"""The table of a sweep: settings that vary, measured values, and means where there are many."""

import pandas as pd
from support.planted_laws import grid, result
from support.printing import printed

from pml_cli.report.tables import results
from pml_cli.report.tables.results import results_table


def test_a_row_holds_the_measured_values_of_its_run():
    run = result(4, 64) | {"token_accuracy": 0.5, "exact_match": 0.0, "first_failure": 7}
    heading, row, *note = printed(results_table(pd.DataFrame([run])))
    assert heading.split() == "rank l L0 L1 dL acc % exact % 1st miss s".split()
    values = row.split()
    assert values[:2] == ["4", "64"]
    assert values[2:5] == [f"{run[name]:.3f}" for name in ("base_loss", "final_loss", "delta_loss")]
    assert values[5:8] == ["50.0", "0.0", "7"]
    assert "nats/token" in " ".join(note)


def test_settings_have_a_column_where_they_vary():
    runs = pd.DataFrame([result(2, 32), result(2, 32) | {"loss": "memft_ot"}])
    heading, first, second, *_ = printed(results_table(runs))
    assert "loss" in heading and "model" not in heading
    assert {first.split()[2], second.split()[2]} == {"sft", "memft_ot"}


def test_the_longest_loss_stays_in_one_piece_beside_all_measures():
    run = result(16, 1024) | {"seconds": 1234.5}
    runs = pd.DataFrame([run, run | {"loss": "memft_margin_facts"}])
    lines = printed(results_table(runs))[:3]
    assert lines[0].split()[-3:] == ["1st", "miss", "s"]
    assert lines[1].split()[2] == "memft_margin_facts"
    assert all(line.split()[-1] == "1234.5" for line in lines[1:])


def test_several_settings_take_the_room_of_some_measures():
    runs = pd.DataFrame(
        [
            result(2, 32),
            result(2, 32) | {"loss": "memft_ot", "seed": 1, "data_seed": 1, "model": "other"},
        ]
    )
    lines = printed(results_table(runs))
    assert "1st miss" not in lines[0] and "exact %" in lines[0]
    assert "text" in lines[0].split() and all(len(line) <= 80 for line in lines)


def test_no_failure_is_none_in_one_sample_and_has_no_position_in_several():
    recalled = result(64, 8) | {"first_failure": None}
    several = recalled | {"samples": 3}
    rows = [printed(results_table(pd.DataFrame([run])))[1].split() for run in (recalled, several)]
    assert [row[7] for row in rows] == ["none", "-"]


def test_many_cells_are_means_by_rank_and_length():
    runs = pd.DataFrame(grid(ranks=(2, 4), lengths=range(10, 140, 10)) * 2)
    assert len(runs) > results.MAX_ROWS
    lines = printed(results_table(runs))
    assert lines[0] == "mean gain dL, nats/token"
    # Thirteen lengths are a block of ten and one of three.
    blocks = [line.split()[3:] for line in lines if line.startswith("rank")]
    assert [len(lengths) for lengths in blocks] == [10, 3, 10, 3]
    mean = runs[(runs["rank"] == 2) & (runs["target_tokens"] == 10)]["delta_loss"].mean()
    assert lines[2].split()[1] == f"{mean:.2f}"


def test_only_all_tokens_are_100_per_cent():
    runs = pd.DataFrame(grid(ranks=range(1, 9), lengths=(8, 16, 32, 64)))
    runs["token_accuracy"] = 0.999
    runs.loc[runs["rank"] == 1, "token_accuracy"] = 1.0
    lines = printed(results_table(runs))
    start = lines.index("tokens predicted right, %")
    assert lines[start + 2].split() == ["1", "100", "100", "100", "100"]
    assert lines[start + 3].split() == ["2", "99", "99", "99", "99"]


def test_no_runs_are_said_to_be_none():
    assert printed(results_table(pd.DataFrame())) == ["no finished runs"]
