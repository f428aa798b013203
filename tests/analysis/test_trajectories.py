"""Trajectories of tokens: crossings, falls and violations counted by hand and by a plain loop."""

from itertools import pairwise

import numpy as np
import pytest
from support.token_tables import CORRECT, PLANTED_P, STEPS, token_table

from pml_cli.analysis import trajectories
from pml_cli.results.tokens import IrregularError


@pytest.fixture
def read_rows(tmp_path):
    """read_rows(table): its trajectories, by way of a file."""

    def read(rows):
        rows.to_parquet(tmp_path / "tokens.parquet", index=False)
        return trajectories.read(tmp_path / "tokens.parquet")

    return read


def test_crossings_and_falls_of_planted_tokens(read_rows):
    tokens = read_rows(token_table())
    assert tokens.steps_T.tolist() == list(STEPS)
    # p = 0.5 is not above, and a token that fell counts from its return.
    assert tokens.above_since_S.tolist() == [10, 30, -1, 30, 30, -1]
    assert tokens.falls_S.tolist() == [0, 1, 0, 1, 0, 1]
    assert tokens.ever_above_S.tolist() == [True, True, False, True, True, True]
    assert tokens.forgotten_S.tolist() == [0, 0, 0, 1, 0, 1]
    assert tokens.final_p_S.tolist() == pytest.approx(PLANTED_P[-1])
    assert tokens.final_correct_S.tolist() == CORRECT[-1].tolist()


def test_recall_of_planted_tokens_by_p(read_rows):
    tokens = read_rows(token_table())
    assert tokens.tokens_B.sum() == 24
    assert tokens.tokens_B[10:].sum() == (PLANTED_P > 0.5).sum() == 10
    # 0.50, 0.50 and 0.49 are in the bin up to and with 0.5.
    assert tokens.tokens_B[9] == 3
    assert tokens.correct_B.sum() == CORRECT.sum()
    assert tokens.highest_wrong_p == pytest.approx(0.3)
    assert tokens.lowest_correct_p == pytest.approx(0.4)
    assert tokens.violations == 0 and tokens.listed_violations == []


def test_random_tokens_are_those_of_a_plain_loop(read_rows):
    rng = np.random.default_rng(5)
    p = rng.random((9, 6)).astype(np.float32)
    correct = (p > 0.3) & (rng.random(p.shape) > 0.2)
    tokens = read_rows(token_table(p, correct, range(9), [0, 0, 1, 1, 1, 2]))

    violations = [
        (step, token)
        for step in range(9)
        for token in range(6)
        if p[step, token] > 0.5 and not correct[step, token]
    ]
    listed = [(row["step"], row["token_id"] - 100) for row in tokens.listed_violations]
    assert listed == violations and tokens.violations == len(violations) > 0
    assert tokens.sample_S.tolist() == [0, 0, 1, 1, 1, 2]
    assert tokens.position_S.tolist() == [0, 1, 0, 1, 2, 0]
    assert tokens.highest_wrong_p == p[~correct].max()
    assert tokens.lowest_correct_p == p[correct].min()

    for token in range(6):
        above = (p[:, token] > 0.5).tolist()
        picked = correct[:, token].tolist()
        steps_from_end = 0
        while steps_from_end < 9 and above[8 - steps_from_end]:
            steps_from_end += 1
        since = 9 - steps_from_end if steps_from_end else -1
        assert tokens.above_since_S[token] == since
        assert tokens.ever_above_S[token] == any(above)
        assert tokens.falls_S[token] == sum(a and not b for a, b in pairwise(above))
        assert tokens.forgotten_S[token] == sum(a and not b for a, b in pairwise(picked))

    for bin_index in range(20):
        inside = (p > bin_index / 20) & (p <= (bin_index + 1) / 20)
        assert tokens.tokens_B[bin_index] == inside.sum()
        assert tokens.correct_B[bin_index] == (inside & correct).sum()


def test_violations_have_what_may_have_caused_them(read_rows):
    correct = CORRECT.copy()
    correct[1, 0] = correct[3, 1] = False
    first, second = read_rows(token_table(correct_TS=correct)).listed_violations
    assert (first["step"], first["position"], second["step"], second["position"]) == (10, 0, 30, 1)
    assert (first["token_id"], first["argmax_id"], first["margin"]) == (100, 7, -1)
    assert second["p"] == pytest.approx(0.9) and second["nll"] == pytest.approx(-np.log(0.9))


def test_violations_beyond_those_listed_are_counted(read_rows, monkeypatch):
    monkeypatch.setattr(trajectories, "MAX_LISTED", 3)
    tokens = read_rows(token_table(correct_TS=np.zeros_like(CORRECT)))
    assert tokens.violations == 10 and len(tokens.listed_violations) == 3


def test_extremes_of_no_token_are_nan(read_rows):
    all_correct = read_rows(token_table(correct_TS=np.ones_like(CORRECT)))
    assert np.isnan(all_correct.highest_wrong_p) and all_correct.lowest_correct_p > 0
    all_wrong = read_rows(token_table(correct_TS=np.zeros_like(CORRECT)))
    assert np.isnan(all_wrong.lowest_correct_p)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows.iloc[:0], "no token was logged"),
        (lambda rows: rows.drop(columns="p"), "no column p"),
        (lambda rows: rows.iloc[:-1], "steps differ in their number of tokens"),
        (lambda rows: rows.iloc[np.r_[0:17, 23:24]], "steps differ in their number of tokens"),
        (
            lambda rows: rows.assign(position=np.r_[rows["position"][:-1], 9].astype(np.int32)),
            "steps differ in their tokens",
        ),
        (
            lambda rows: rows.assign(sample=np.r_[rows["sample"][:-1], 9].astype(np.int32)),
            "steps differ in their tokens",
        ),
        (lambda rows: rows.iloc[np.r_[6:12, 0:6, 12:24]], "steps do not ascend"),
    ],
)
def test_files_that_are_no_table_of_steps_and_tokens(read_rows, spoil, message):
    with pytest.raises(IrregularError, match=message):
        read_rows(spoil(token_table()))


def test_a_torn_file_is_not_readable(tmp_path):
    (tmp_path / "tokens.parquet").write_bytes(b"PAR1")
    with pytest.raises(IrregularError, match="not readable"):
        trajectories.read(tmp_path / "tokens.parquet")
    with pytest.raises(FileNotFoundError):
        trajectories.read(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("p", 1.5, "no probability"),
        ("p", None, "empty values"),
        ("correct", None, "empty values"),
        ("step", 2**40, "no count"),
        ("position", -1, "no count"),
        ("sample", 0.5, "is of double"),
    ],
)
def test_values_that_cannot_be_are_refused(read_rows, column, value, reason):
    rows = token_table()
    rows[column] = [value, *rows[column].astype(object)[1:]]
    with pytest.raises(IrregularError, match=f"column {column} .*{reason}"):
        read_rows(rows)


@pytest.mark.parametrize("column", ["token_id", "margin"])
def test_violations_without_what_is_shown_of_them_are_refused(read_rows, column):
    rows = token_table(correct_TS=np.zeros_like(CORRECT))
    empty = rows.assign(**{column: rows[column].astype(object).where(rows["p"] <= 0.5, None)})
    for changed, reason in (
        (rows.drop(columns=column), f"no column {column}"),
        (rows.assign(**{column: "word"}), f"column {column} is of"),
        (empty, f"column {column} has empty values|column {column} is of"),
    ):
        with pytest.raises(IrregularError, match=reason):
            read_rows(changed)
