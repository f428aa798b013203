"""What `pml transition` prints: counts with their nouns, proportions with their intervals."""

import math
from itertools import pairwise

import numpy as np
import pytest
from support.printing import printed
from support.token_tables import CORRECT, PLANTED_P, token_table, write_run

from pml_cli.analysis import first_failures
from pml_cli.analysis.first_failures import Correlation
from pml_cli.analysis.run_selection import transition_runs
from pml_cli.analysis.transition import read_group, summarize
from pml_cli.config.reports import Transition
from pml_cli.report.tables import transition as tables


def summary_of(folder):
    runs = transition_runs([folder], Transition())
    tokens = read_group(runs, lambda: None)
    return summarize(tokens, name="the group", slug="g", key={}, draws=0, text=None)


def text_of(renderable):
    return " ".join(" ".join(printed(renderable)).split())


@pytest.fixture
def one_run(tmp_path):
    write_run(tmp_path, "a", token_table())
    return summary_of(tmp_path)


def test_one_of_something_is_singular(one_run):
    text = text_of(tables.group_report(one_run))
    assert "1 run, 24 logged tokens, 1 text" in text
    assert "1 sequence: 0 without a stubborn token at the end, 0 with stubborn" in text


def test_recall_above_one_half_is_one_row_where_every_token_is_decoded(one_run):
    lines = printed(tables.group_report(one_run))
    rows = [line.split() for line in lines if line.startswith("0.")]
    above = [row for row in rows if float(row[0]) >= 0.5]
    assert [row[:5] for row in above] == [["0.50", "to", "1.00", "10", "100.0"]]
    assert all(float(low[2]) <= float(high[0]) for low, high in pairwise(rows))


def test_a_violation_shows_every_bin_and_the_case(tmp_path):
    correct = CORRECT.copy()
    correct[3, 1] = False
    write_run(tmp_path, "a", token_table(correct_TS=correct))
    group = summary_of(tmp_path)
    text = text_of(tables.group_report(group))
    assert "0.85 to 0.90 1 0.0" in text
    report = text_of(tables.violation_report([group]))
    assert "float32: 1 violation. Exact arithmetic has none" in report
    assert "30 0 1 0.9000000 -1.00e+00 0.105361 101 7" in report


def test_violations_beyond_the_table_are_counted(tmp_path):
    p = np.full((4, 9), 0.9)
    write_run(tmp_path, "a", token_table(p, p > 1))
    report = text_of(tables.violation_report([summary_of(tmp_path)]))
    assert "float32: 36 violations" in report
    assert "and 16 more in violations.csv" in report


def test_first_failures_of_one_text(tmp_path):
    """Six runs of one text fail at its third token, whatever else they recall."""
    for seed in range(6):
        correct = np.ones((4, 6), bool)
        correct[:, 2] = False
        correct[:, 3 + seed % 3] = False
        p = np.where(correct, 0.9, 0.1)
        write_run(tmp_path, f"r{seed}", token_table(p, correct), seed=seed)
    text = " ".join(tables.failure_lines(summary_of(tmp_path)))
    assert "100 % lie at the most common position of their text" in text
    assert "over 1 text." in text
    assert "text 0: 6 of 6 at position 2 (100 %" in text
    assert "The earliest stubborn token is the first failure in 6 of 6 (100 %)" in text


def test_no_text_has_enough_failures(one_run):
    assert "no text has the 5 that a common position needs" in tables.failure_lines(one_run)[-1]


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        ("", "rho 0.500 (95 % 0.200 to 0.700, 8 clusters)"),
        (first_failures.NO_DRAWS, "rho 0.500 (no interval: draws=0)"),
        (
            first_failures.TOO_FEW_CLUSTERS,
            "rho 0.500 (no interval: 8 clusters (texts; of few texts, text and length), "
            "at least 4 needed)",
        ),
        (first_failures.CONSTANT, "no rho (one of the two never varies)"),
        (first_failures.TOO_FEW_SEQUENCES, "no rho (30 sequences)"),
    ],
)
def test_a_correlation_or_why_there_is_none(problem, text):
    has_rho = problem not in (first_failures.CONSTANT, first_failures.TOO_FEW_SEQUENCES)
    correlation = Correlation(
        rho=0.5 if has_rho else math.nan,
        low=math.nan if problem else 0.2,
        high=math.nan if problem else 0.7,
        n=30,
        clusters=8,
        problem=problem,
    )
    assert tables.correlation_text(correlation) == text


def test_loss_and_recall_that_disagree(tmp_path):
    confident = np.full_like(PLANTED_P, 0.9)
    wrong = token_table(confident, CORRECT)
    write_run(tmp_path, "a", wrong, exact_match=0.0)
    line = tables.loss_lines(summary_of(tmp_path))[0]
    assert "below ln 2, 100.0 % (no interval; 1 of 1) are not verbatim" in line
    assert "of those above, none (of 0) are" in line
