"""The answer of `pml memorize`: six lines, memorize.json, facts.csv, the figure, README.md."""

import dataclasses
import json

import pandas as pd
import pytest
from support.memorize import TRIALS, failed_report, planted_proof, planted_report
from support.printing import printed

from pml_cli.analysis.rank_search import Limits
from pml_cli.report.figures.memorize import memorize_figure
from pml_cli.report.forgetting_text import meaning_of_harm
from pml_cli.report.memorize_folder import facts_table, write
from pml_cli.report.memorize_report import Forgetting
from pml_cli.report.memorize_text import (
    facts_text,
    failed_lines,
    forgetting_text,
    rank_text,
    sampling_lines,
)
from pml_cli.report.tables.memorize import answer_lines

README = "# An adapter\n\nIt was trained.\n\n## How it was made\n\n- by hand\n"


@pytest.fixture
def out(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/README.md").write_text(README)
    return tmp_path


def lines_of(report, width=100):
    names = ["memorize.json", "memorize.png", "memorize.svg", "memorize.pdf"]
    return [line.rstrip() for part in answer_lines(report, names) for line in printed(part, width)]


def test_six_lines(tmp_path):
    lines = lines_of(dataclasses.replace(planted_report(tmp_path), out="o"))
    assert lines[:6] == [
        "rank         3 (smaller ones failed), run r3-s1",
        "facts        3 of 4 whole, also by its script, merged; bf16 2; int8 base 1",
        "forgetting   0.07 nats/token on other text (0.05 to 0.09): perplexity 7.3 % up",
        "paraphrases  4 of 8 exact (20 to 80 %), F1 0.62 (base 0.05); others as before "
        "18 of 20, F1 0.95",
        "time         13 min, 6 cells tried",
        "folder       o: adapter/, memorize.json, memorize.png",
    ]
    # Below them what is not known.
    assert lines[6:] == ["'Where?': wrong from position 3: expected ' Ada', got ' =Bob'"]


def test_an_answer_that_was_not_reached_says_what_to_change(tmp_path):
    report = failed_report(tmp_path)
    assert rank_text(report) == "none within the limits; the best is rank 4 (r4-s0)"
    assert lines_of(report)[-1] == "take larger ranks: rank=16"


def test_what_was_not_measured(tmp_path):
    report = planted_report(tmp_path, proof=None, forgetting=None, facts=None)
    lines = lines_of(dataclasses.replace(report, out="o"))
    assert lines[1] == "text         75.0 % of the tokens right"
    assert lines[2] == "forgetting   not measured"
    assert lines[3] == "paraphrases  not asked"
    assert len(lines) == 6


def test_a_script_that_could_not_run_is_said(tmp_path):
    proof = planted_proof()
    script = dataclasses.replace(proof.script, status="stopped after 9 s", asked=1, whole=1)
    report = planted_report(tmp_path, proof=dataclasses.replace(proof, script=script))
    expected = (
        "3 of 4 whole, also merged; bf16 2; int8 base 1; its script 1 of 1 (stopped after 9 s)"
    )
    assert facts_text(report) == expected


def test_bands_of_the_least_rank(tmp_path):
    report = planted_report(tmp_path)
    open_below = dataclasses.replace(report.answer, low=2, confirmed=False)
    text = rank_text(dataclasses.replace(report, answer=open_below))
    assert text == "3 (at least 2; one seed alone), run r3-s1"
    smallest = dataclasses.replace(report.answer, rank=1, low=1)
    assert rank_text(dataclasses.replace(report, answer=smallest)).startswith("1 (the smallest")

    # Of rank=4,8 nothing below 4 was tried: nothing below it has failed.
    above = [cell for cell in report.cells if cell.trial.rank >= 4]
    least = dataclasses.replace(report.answer, rank=4, low=4, high=4, seed=0)
    text = rank_text(dataclasses.replace(report, answer=least, cells=above))
    assert text == "4 (the smallest that was tried), run r3-s1"

    # Of rank=2,4 nothing between them was tried.
    apart = [cell for cell in report.cells if cell.trial.rank in (2, 4)]
    text = rank_text(dataclasses.replace(report, answer=least, cells=apart))
    assert text == "4 (2 failed, none between was tried), run r3-s1"


def test_a_seed_that_failed_at_the_least_rank_is_named(tmp_path):
    report = planted_report(tmp_path, limits=Limits(exact=1.0, max_forgetting=0.1))
    one_seed = dataclasses.replace(report.answer, seed=0, confirmed=False)
    text = rank_text(dataclasses.replace(report, answer=one_seed))
    assert text == "3 (smaller ones failed; with seed 0, not with 1), run r3-s1"


def test_a_text_that_became_likelier(tmp_path):
    forgetting = Forgetting(harm=-0.01, low=-0.02, high=0.001)
    text = forgetting_text(planted_report(tmp_path, forgetting=forgetting))
    assert text == "-0.01 nats/token on other text (-0.02 to 0.001): perplexity 1 % down"


def test_a_harm_means_what_pml_forgetting_says(tmp_path):
    """No power of ten: 1.2e+02 % were 120 %."""
    forgetting = Forgetting(harm=0.79, low=0.73, high=0.85)
    text = forgetting_text(planted_report(tmp_path, forgetting=forgetting))
    assert text.endswith(f": {meaning_of_harm(0.79)}") and text.endswith("perplexity 120 % up")


def test_only_some_of_many_failed_facts_are_named():
    proof = planted_proof()
    wrong = proof.facts[-1]
    lines = list(failed_lines(dataclasses.replace(proof, facts=[wrong] * 5)))
    assert len(lines) == 4
    assert lines[-1] == "and 2 more: facts.csv"


def test_facts_that_sampling_would_not_write_are_said():
    proof = planted_proof()
    assert list(sampling_lines(proof)) == []
    (line,) = sampling_lines(dataclasses.replace(proof, median_log10_p=-19.8))
    assert "a chance of 10^-20 only" in line
    (line,) = sampling_lines(dataclasses.replace(proof, median_log10_p=-1.0))
    assert "a chance of 10.0 % only" in line


def test_files(out):
    report = planted_report(out)
    names = write(report)
    assert names == [
        "memorize.json",
        "facts.csv",
        *(f"memorize.{suffix}" for suffix in ("png", "svg", "pdf")),
        "index.md",
    ]
    assert all((out / name).stat().st_size for name in names)

    content = json.loads((out / "memorize.json").read_text())
    assert content["format"] == 1
    assert content["answer"]["rank"] == 3 and content["run"] == "r3-s1"
    assert content["limits"] == {"exact": 0.75, "max_forgetting": 0.1}
    keys = ("rank", "seed", "recalled", "harm")
    assert [tuple(cell[key] for key in keys) for cell in content["cells"]] == TRIALS
    assert content["proof"]["variants"]["f1"] == 0.625
    assert content["proof"]["facts"] == 4


def test_facts_csv_is_read_back_as_it_was(out):
    write(planted_report(out), figures=False)
    table = pd.read_csv(out / "facts.csv", keep_default_na=False, na_values={"first_wrong": [""]})
    expected = facts_table(planted_proof())
    for name in ("question", "answer", "whole", "log10_p", "variants_exact"):
        assert table[name].tolist() == expected[name].tolist()
    # A blank in front: no spreadsheet takes it for a formula, so that it is not marked.
    assert table["got"].tolist() == ["", "", "", " =Bob"]
    assert table["first_wrong"].tolist()[-1] == 3


def test_the_adapter_says_what_it_knows(out):
    report = planted_report(out)
    write(report, figures=False)
    text = (out / "adapter/README.md").read_text()
    assert text.startswith(
        "# An adapter\n\nIt was trained.\n\n## What it knows, and what it harms\n"
    )
    assert text.endswith("\n\n## How it was made\n\n- by hand\n")
    assert "`pml memorize facts.jsonl --exact 75%` made it" in text
    assert "chance of 56.2 % (median), the least sure one 10^-7" in text
    # Written again, it stands there once.
    write(report, figures=False)
    assert (out / "adapter/README.md").read_text() == text


def test_the_figure_marks_the_answer_and_the_limits(tmp_path):
    report = planted_report(tmp_path)
    recall, harm = memorize_figure(report).axes
    ranks = {point[0] for c in recall.collections for point in c.get_offsets().tolist()}
    # Two seeds of one rank stand side by side.
    assert len(ranks) == 6
    assert {round(rank) for rank in ranks} == {1, 2, 3, 4, 8}
    full = [c for c in harm.collections if len(c.get_facecolors())]
    assert sorted(y for c in full for _, y in c.get_offsets().tolist()) == [0.06, 0.07, 0.08]
    assert [line.get_xdata()[0] for line in recall.lines if "rank" in line.get_label()] == [3]
    assert any(line.get_ydata()[0] == 0.1 for line in harm.lines)
    # One cell, and nothing measured.
    bare = planted_report(tmp_path, cells=[report.cells[0]])
    trial = dataclasses.replace(bare.cells[0].trial, harm=None)
    cells = [dataclasses.replace(bare.cells[0], trial=trial)]
    recall, empty = memorize_figure(dataclasses.replace(bare, cells=cells)).axes
    assert "not measured" in empty.texts[0].get_text()
    # The panels share their ranks: those of the other one can be read all the same.
    assert [label.get_text() for label in recall.get_xticklabels()] == ["1"]


def test_the_title_of_the_figure_says_what_the_terminal_says(tmp_path):
    report = planted_report(tmp_path)
    title = memorize_figure(report).get_suptitle()
    assert title == "4 facts: rank 3 is the least within the limits (smaller ones failed)"

    # Of rank=4,8 nothing below 4 was tried: it need not be the least.
    above = [cell for cell in report.cells if cell.trial.rank >= 4]
    least = dataclasses.replace(report.answer, rank=4, low=4, high=4, seed=0)
    title = memorize_figure(dataclasses.replace(report, answer=least, cells=above)).get_suptitle()
    assert title == "4 facts: rank 4 is the least within the limits (the smallest that was tried)"
