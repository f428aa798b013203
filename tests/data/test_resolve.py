"""Automatic settings become what they are for a model; runs of old keep their meaning and id."""

import pytest
import yaml

from pml_cli.config.dump import to_yaml
from pml_cli.config.load import read_run
from pml_cli.config.schema import Run
from pml_cli.data.opened import samples_of
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.rule import RuleData
from pml_cli.launch.packing import check
from pml_cli.runs.run_id import run_id

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
    assert resolved_run(run) == run
    assert run_id(run) == old_id
    assert run.data.system == ""
    # The embedded model has no chat template.
    samples = [] if data.chat else samples_of(run)
    assert all(sample.end == 0 for sample in samples)


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
