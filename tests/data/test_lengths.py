"""Lengths in words: all of a source, or so many samples. Equal runs, however they are asked for."""

import csv
import json

import pytest

from pml_cli.config.request import load
from pml_cli.data.opened import samples_of, source_of
from pml_cli.data.resolve import resolved_run
from pml_cli.errors import UserError
from pml_cli.launch.packing import check


@pytest.fixture
def facts_file(tmp_path):
    """Ten facts, of which the answers differ in length."""
    path = tmp_path / "facts.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "answer"])
        table.writerows([f"What is number {i}?", "seven " * (1 + i % 3)] for i in range(10))
    return path


def cells(*overrides):
    return check(load("sweep", ["rank=2", *overrides]).runs)


def ids(*overrides):
    return [cell.id for cell in cells(*overrides)]


def test_samples_and_all_are_lengths(facts_file):
    data = ("data=jsonl", f"data.path={facts_file}")
    (all_of_it,) = cells(*data, "seqlen=all")
    assert len(all_of_it.samples) == 10
    total = sum(len(sample.target) for sample in all_of_it.samples)
    assert all_of_it.run.seqlen == total
    assert all_of_it.run.data.samples is None

    ends = source_of(all_of_it.run).sample_ends
    assert ends[-1] == total
    assert ids(*data, "data.samples=3,10") == ids(*data, f"seqlen={ends[2]},{total}")
    assert ids(*data, "data.samples=10", "seqlen=all") == [all_of_it.id]
    assert ids(*data, f"seqlen={ends[2]},all") == ids(*data, f"seqlen={ends[2]},{total}")
    # Twice the same length is one cell.
    assert ids(*data, f"seqlen=all,{total}") == [all_of_it.id]
    assert [len(cell.samples) for cell in cells(*data, "data.samples=1,4")] == [1, 4]


def test_samples_follow_the_order_of_the_seed(facts_file):
    data = ("data=jsonl", f"data.path={facts_file}", "data.samples=4")
    first, second = cells(*data, "data.seed=0,1")
    assert len(first.samples) == len(second.samples) == 4
    assert first.samples != second.samples


def test_the_end_counts(facts_file):
    data = ("data=jsonl", f"data.path={facts_file}", "seqlen=all")
    (with_end,), (without,) = cells(*data), cells(*data, "data.end=none")
    assert with_end.run.seqlen == without.run.seqlen + 10


@pytest.mark.parametrize("source", ["phonebook", "rule"])
def test_generated_facts_by_samples(source):
    (cell,) = cells(f"data={source}", "data.samples=7")
    assert len(cell.samples) == 7
    assert cell.run.seqlen == sum(len(sample.target) for sample in cell.samples)


def test_all_of_a_text(tmp_path):
    (tmp_path / "notes.txt").write_text("The ferry crosses the lake at dawn. " * 20)
    text = ("data=text", f"data.path={tmp_path / 'notes.txt'}", "seqlen=all")
    (cell,) = cells(*text)
    assert len(cell.samples[0].target) == cell.run.seqlen == source_of(cell.run).max_tokens
    (tmp_path / "long.txt").write_text("The ferry crosses the lake at dawn. " * 2000)
    message = r"^seqlen=all: data=text:long has \d+, model=tiny has a context of 8192 tokens$"
    with pytest.raises(UserError, match=message):
        cells("data=text", f"data.path={tmp_path / 'long.txt'}", "seqlen=all")


def test_a_run_with_a_number_is_left_alone():
    (run,) = load("sweep", ["seqlen=40"]).runs
    assert resolved_run(run).seqlen == 40


@pytest.mark.parametrize("length", ["seqlen=all", "data.samples=3"])
def test_a_fact_beyond_the_context_is_named_by_its_place(tmp_path, length):
    rows = [("a", "b"), ("c", "long " * 9000), ("e" * 9000, "f"), ("g", "h")]
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
    file = tmp_path / "facts.jsonl"
    file.write_text("\n\n".join(lines))
    with pytest.raises(UserError) as caught:
        samples_of(resolved_run(load("probe", ["data=jsonl", f"data.path={file}", length]).runs[0]))
    line = str(caught.value)
    assert line.startswith(f"data.path={file}: line 3: prompt and target need ")
    assert line.endswith("but model=tiny has a context of 8192 (the first of 2)")
    assert "seqlen" not in line


FAULTS = {
    "endless": (["seqlen=all"], "seqlen=all: data=random has no end; give a number"),
    "more": (
        ["data=jsonl", "data.path={file}", "data.samples=11"],
        "data.samples=11: data=jsonl:facts has only 10 samples",
    ),
    "both": (
        ["data=jsonl", "data.path={file}", "data.samples=3,4", "seqlen=9,all"],
        "data.samples=3,4: cannot be combined with seqlen=9; leave one out, or give seqlen=all",
    ),
    "none": (["data=phonebook", "data.samples=0"], "data.samples=0: must be null or at least 1"),
    "of a text": (["data=text", "data.samples=3"], "data.samples: no such key (of data=text)"),
    "word": (["seqlen=alll"], "seqlen=alll: must be an integer or all"),
    "zero": (["seqlen=0"], "seqlen=0: must be at least 1 or all"),
    "sample": (
        ["data=jsonl", "data.path={file}", "seqlen=1"],
        "seqlen=1: the first sample alone has 4 target tokens; seqlen=all takes 10 samples (",
    ),
    "long": (
        ["data=jsonl", "data.path={file}", "seqlen=1000"],
        "target tokens for model=tiny; seqlen=all takes them all",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(facts_file, name):
    overrides, message = FAULTS[name]
    with pytest.raises(UserError) as caught:
        cells(*[override.format(file=facts_file) for override in overrides])
    assert message in str(caught.value)
    assert len(caught.value.faults) == 1


def test_all_in_sweep_files_and_options_of_ones_own(tmp_path, facts_file):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"data: jsonl\ndata.path: {facts_file}\nseqlen: [8, all]\nrank: 2\n")
    lengths = [cell.run.seqlen for cell in check(load("sweep", [], sweep).runs)]
    assert lengths[0] == 8
    assert lengths[1] > 8

    sweep.write_text(f"data: jsonl\ndata.path: {facts_file}\nseqlen: all\nrank: 2\n")
    assert [cell.run.seqlen for cell in check(load("sweep", [], sweep).runs)] == lengths[1:]

    defaults = "defaults: [_self_, model: tiny, data: random, adapter: mlp_block, loss: sft, "
    defaults += "train: default, launch: inline]\n"
    (tmp_path / "sweep.yaml").write_text(f"{defaults}seqlen: all\n")
    own = load("sweep", ["data=jsonl", f"data.path={facts_file}"], config_dir=tmp_path)
    assert check(own.runs)[0].run.seqlen == lengths[1]
