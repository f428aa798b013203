"""Automatic settings become what they are for a model; runs of old keep their meaning and id."""

import json

import pytest
import yaml

from pml_cli.config.dump import to_yaml
from pml_cli.config.load import read_run
from pml_cli.config.request import load
from pml_cli.config.schema import Model, Run
from pml_cli.data.opened import samples_of
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.rule import RuleData
from pml_cli.errors import UserError
from pml_cli.launch.packing import check
from pml_cli.results.run_id import run_id

# Settings that came with the end token.
NEW = ("end", "separator", "begin", "system", "thinking", "date", "prompt")


@pytest.mark.parametrize(
    ("data", "old_id"),
    [
        (RandomData(), "tiny-random-r8-l64-s0-571b6f16a5"),
        (RandomData(prompt="Hello"), "tiny-random-r8-l64-s0-2f06666388"),
        (RandomData(chat=True), "tiny-random-r8-l64-s0-f0a58334a3"),
        (PhonebookData(), "tiny-phonebook-r8-l64-s0-f118659b0a"),
        (PhonebookData(chat=True), "tiny-phonebook-r8-l64-s0-6789c0b7b5"),
        (RuleData(), "tiny-rule-r8-l64-s0-501ef34537"),
    ],
    ids=str,
)
def test_a_config_of_old_means_the_way_of_old(data, old_id, tmp_path):
    path = tmp_path / "config.yaml"
    tree = yaml.safe_load(to_yaml(Run(seqlen=64, data=data)))
    for name in NEW:
        if name != "prompt" or tree["data"].get(name) is None:
            tree["data"].pop(name, None)
    path.write_text(yaml.safe_dump(tree))

    run = read_run(path)
    assert run_id(run) == old_id
    assert run.data.system == ""
    # The embedded model has no chat template.
    if not data.chat:
        assert resolved_run(run) == run
        assert all(sample.end == 0 for sample in samples_of(run))


def test_facts_end_and_say_so():
    (cell,) = check([Run(seqlen=64, data=PhonebookData())])
    data = cell.run.data
    assert (data.end, data.separator, data.begin, data.system) == ("<|endoftext|>", "", True, "")
    assert resolved_run(cell.run) == cell.run
    for sample in cell.samples:
        assert (sample.target[-1], sample.end) == (0, 1)
        assert sample.turns[0][0] == "user"

    old = Run(seqlen=64, data=PhonebookData(end="none"))
    (old_cell,) = check([old])
    assert old_cell.id == run_id(old) != cell.id
    old_targets = [sample.target for sample in old_cell.samples]
    targets = [sample.target for sample in cell.samples]
    assert targets == [(*target, 0) for target in old_targets[: len(targets)]]


def test_long_texts_end_where_they_are_not_cut(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"question": f"Part {i}:", "matching": "A ferry, a town. " * 3} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = resolved_run(Run(data=JsonlData(path=str(path)))).data.open(Model())
    length = source.max_tokens // 3
    for seqlen, ends in ((3 * length, [1, 1, 1]), (2 * length - 1, [1, 0]), (length, [1])):
        samples = source.take(seqlen)
        assert [sample.end for sample in samples] == ends
        assert [sample.target[-1] == 0 for sample in samples] == [end == 1 for end in ends]


def test_unseen_pairs_and_held_out_entries_end_too():
    rule = resolved_run(Run(data=RuleData(maximum=9, test_samples=30))).data.open(Model())
    assert {sample.end for sample in rule.test_samples} == {1}
    phonebook = resolved_run(Run(data=PhonebookData())).data.open(Model())
    assert {len(sample.target) for sample in phonebook.held_out(110)} == {11}
    with pytest.raises(UserError, match="the first sample alone has 11 target tokens"):
        phonebook.take(10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=random", "data.system=You"], "data.system=You: needs data.chat=true"),
        (["data=random", "data.thinking=true"], "data.thinking=true: needs data.chat=true"),
        (["data=text", "data.date=2024-01-01"], "data.date=2024-01-01: needs data.chat=true"),
        (["data=text", "data.date=2025-02-29"], "data.date=2025-02-29: must be a date of the cal"),
        (["data=text", "data.date=today"], "data.date=today: must be a date: 2025-12-31"),
        (["data=rule", "data.end="], "data.end=: must be auto, none or a text"),
        (["data=rule", "data.chat=true", "data.separator=x"], "data.separator='x': not with"),
        (["data=rule", "data.chat=true", "data.begin=false"], "data.begin=false: not with"),
        (["data=text", "data.end=none"], "data.end: "),
        (["data=rule", "data.chat=true"], "data.chat=true: the tokenizer of model=tiny has no"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_said_on_the_command_line(options, message, quick):
    done = quick("probe", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")


def test_a_line_feed_is_written_as_in_a_string():
    request = load("probe", ["data=phonebook", r"data.separator=\n", r'data.end="\n\n"'])
    assert (request.runs[0].data.separator, request.runs[0].data.end) == ("\n", "\n\n")
