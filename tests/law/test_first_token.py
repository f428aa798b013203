"""First tokens that never move, planted in the tokens of run folders."""

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from support.law_groups import fit_quietly
from support.token_tables import token_table, write_run

from pml_cli.law.findings import finding
from pml_cli.law.first_token import unmoved_first_tokens
from pml_cli.report.first_token import print_unmoved
from pml_cli.results.read import read_runs

RANKS, LENGTHS = (1, 2, 4, 8), (16, 32, 64)


def tokens(length, *, first, others):
    """p of a first token and of all others, before training and after."""
    p = np.full((2, length), 1e-3)
    p[0, 0] = 1e-5
    p[1] = others
    p[1, 0] = first
    return token_table(p, p > 0.5, steps=(0, 60))


def write_sweep(root, *, first=1e-5, others=0.98, ranks=RANKS, lengths=LENGTHS, **fields):
    """A run for each rank and length."""
    for rank in ranks:
        for length in lengths:
            rows = tokens(length, first=first, others=others)
            named = {"model": "far", "data": "text", "rank": rank} | losses(rows) | fields
            name = f"{named['model']}-{rank}-{length}"
            write_run(root, name, rows, **named)


def losses(rows):
    """The losses of result.json."""
    before, after = (float(rows[rows["step"] == step]["nll"].mean()) for step in (0, 60))
    return {"base_loss": before, "final_loss": after, "delta_loss": before - after}


def found_in(root):
    return unmoved_first_tokens(read_runs([root]))


def test_first_tokens_that_never_moved_are_found(tmp_path):
    write_sweep(tmp_path)
    assert found_in(tmp_path) == [finding("first_token_unmoved", model="far", missing=12, runs=12)]


@pytest.mark.parametrize(
    "planted",
    [
        # It has moved, if not far enough.
        {"first": 0.05},
        # It was learned.
        {"first": 0.98},
        # Nothing was learned anywhere: too small an adapter, or too few steps.
        {"others": 1.1e-3},
        {"setting": "data.prompt=The licence:"},
        {"setting": "data.text=123456 data.chat=True"},
        # Facts have a question.
        {"data": "jsonl:facts"},
        {"samples": 3, "first_failure": None},
    ],
)
def test_other_runs_are_not(tmp_path, planted):
    write_sweep(tmp_path, **planted)
    assert found_in(tmp_path) == []


def test_nearly_all_runs_must_agree(tmp_path):
    write_sweep(tmp_path, ranks=(1, 2, 4))
    write_sweep(tmp_path, ranks=(8,), first=0.98)
    assert found_in(tmp_path) == []


def test_each_model_counts_by_itself(tmp_path):
    write_sweep(tmp_path)
    write_sweep(tmp_path, model="other", first=0.98)
    (found,) = found_in(tmp_path)
    assert found.values["model"] == "far" and found.values["runs"] == 12


def test_where_hardly_a_token_is_learned_the_first_one_tells_nothing(tmp_path):
    write_sweep(tmp_path, others=0.4, token_accuracy=0.0)
    assert not found_in(tmp_path)


def without_first_token(path):
    rows = pd.read_parquet(path)
    rows[rows["position"] > 0].to_parquet(path)


def first_token_twice(path):
    rows = pd.read_parquet(path)
    rows.assign(position=rows["position"].clip(lower=1) - 1).to_parquet(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("damaged", "utf-8"),
        without_first_token,
        first_token_twice,
    ],
)
def test_runs_with_unreadable_tokens_do_not_count(tmp_path, damage):
    write_sweep(tmp_path, ranks=(1,))
    for path in tmp_path.glob("*/tokens.parquet"):
        damage(path)
    assert found_in(tmp_path) == []


def test_only_the_tokens_of_runs_that_may_be_stuck_are_read(tmp_path, monkeypatch):
    write_sweep(tmp_path, first=0.98)
    runs = read_runs([tmp_path])
    monkeypatch.setattr("pml_cli.law.first_token.read_grid", lambda *_, **__: pytest.fail("read"))
    assert unmoved_first_tokens(runs) == []


def test_the_warning_names_the_prompt(tmp_path):
    write_sweep(tmp_path)
    console = Console(record=True, width=80)
    print_unmoved(read_runs([tmp_path]), console)
    (line,) = console.export_text().splitlines()
    assert line.startswith(
        "warning: the first token is wrong in all 12 runs of far without a prompt"
    )
    assert "data.prompt" in line and "larger" not in line


def test_a_fit_advises_a_prompt_and_no_larger_ranks(tmp_path):
    write_sweep(tmp_path)
    printed = " ".join(fit_quietly(tmp_path, draws=0).split())
    assert "warning: the first token is wrong in all 12 runs of far without a prompt" in printed
    assert "no cell is recalled exactly, because none has learned its first token" in printed
    assert "larger ranks" not in printed and "pml sweep" not in printed


def test_no_runs_have_none(tmp_path):
    write_sweep(tmp_path, ranks=(1,))
    assert unmoved_first_tokens(read_runs([tmp_path]).head(0)) == []


def test_a_transition_warns_too(tmp_path, quick):
    write_sweep(tmp_path / "runs", ranks=(4, 8))
    done = quick("transition", "runs", "figures=false", "draws=0")
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert "warning: the first token is wrong in all 6 runs of far without a prompt" in printed
