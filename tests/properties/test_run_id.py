"""The id of a run: the same for the same science, another for any other."""

import copy
import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st
from support.strategies import field_values, mended, runs

from pml_cli.config.dump import to_yaml
from pml_cli.config.load import read_run
from pml_cli.config.schema import Model, Run
from pml_cli.config.setting import DISCRIMINATORS, declaration_of, faults
from pml_cli.data.sources.random import RandomData
from pml_cli.errors import UserError
from pml_cli.results.run_folders import run_key
from pml_cli.results.run_id import NOT_SCIENTIFIC, ONLY_OF_PENALTIES, changed_settings, run_id

GROUPS = ("data", "adapter", "loss", "train")


@given(runs())
def test_equal_runs_have_equal_ids(run):
    assert run_id(copy.deepcopy(run)) == run_id(run)

    # The order in which a mapping was written does not count.
    reordered = dict(reversed(run.model.architecture.items()))
    model = dataclasses.replace(run.model, architecture=reordered)
    assert run_id(dataclasses.replace(run, model=model)) == run_id(run)


@given(runs(), st.data())
def test_where_a_run_happens_does_not_count(run, data):
    key = run_key(run_id(run))
    for name in NOT_SCIENTIFIC:
        value = data.draw(field_values(Model, name))
        model = dataclasses.replace(run.model, **{name: value})
        assert run_key(run_id(dataclasses.replace(run, model=model))) == key


@given(runs(), st.sampled_from(GROUPS), st.data())
def test_any_other_setting_counts(run, group, data):
    settings = getattr(run, group)
    owner = type(settings)
    key = run_key(run_id(run))
    for name in [field.name for field in dataclasses.fields(owner)]:
        if not _counts(run, owner, name):
            continue
        value = data.draw(field_values(owner, name))
        changed = dataclasses.replace(settings, **{name: value})
        # What a setting was before it existed counts as its default.
        is_equal = changed_settings(changed) == changed_settings(settings)
        other = run_key(run_id(dataclasses.replace(run, **{group: changed})))
        assert (other == key) == (is_equal or value == getattr(settings, name))


def _counts(run, owner, name):
    """Whether a setting counts by its value, and not with another or by the content of a file."""
    if name in DISCRIMINATORS or declaration_of(owner, name).path:
        return False
    if name == "lr" and run.train.optimizer != "adamw":
        return False
    return run.loss.keeps or name not in ONLY_OF_PENALTIES


def test_thousands_of_runs_have_an_id_each():
    ids = set()
    shapes = itertools.product(range(1, 17), range(1, 33), range(3), range(4))
    for rank, seqlen, seed, text in shapes:
        data = RandomData(seed=text)
        ids.add(run_key(run_id(Run(rank=rank, seqlen=seqlen, seed=seed, data=data))))
    assert len(ids) == 16 * 32 * 3 * 4


@given(run=runs().map(mended))
def test_a_run_is_read_back_from_its_config_as_it_was(run, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(to_yaml(run), "utf-8")
    try:
        read = read_run(path)
    # jsonl needs a file, and another group's settings may not fit these.
    except UserError:
        assert faults(run)
        return
    assert read == run
    assert run_id(read) == run_id(run)
