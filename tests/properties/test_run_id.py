"""The id of a run: the same for the same science, another for any other."""

import copy
import dataclasses
import itertools

import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from support.strategies import field_values, runs

from pml_cli.config.dump import to_yaml
from pml_cli.config.load import read_run
from pml_cli.config.schema import Model, Run
from pml_cli.config.setting import DISCRIMINATORS, declaration_of
from pml_cli.data.sources.random import RandomData
from pml_cli.runs.run_folders import run_key
from pml_cli.runs.run_id import NOT_SCIENTIFIC, ONLY_OF_PENALTIES, changed_settings, run_id

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
    name = data.draw(st.sampled_from(NOT_SCIENTIFIC))
    value = data.draw(field_values(Model, name))
    model = dataclasses.replace(run.model, **{name: value})
    assert run_key(run_id(dataclasses.replace(run, model=model))) == run_key(run_id(run))


@given(runs(), st.data())
def test_any_other_setting_counts(run, data):
    group = data.draw(st.sampled_from(GROUPS))
    settings = getattr(run, group)
    owner = type(settings)
    names = [field.name for field in dataclasses.fields(owner) if _counts(run, owner, field.name)]
    name = data.draw(st.sampled_from(names))
    changed = dataclasses.replace(settings, **{name: data.draw(field_values(owner, name))})

    # What a setting was before it existed counts as its default.
    assume(changed_settings(changed) != changed_settings(settings))
    assert run_key(run_id(dataclasses.replace(run, **{group: changed}))) != run_key(run_id(run))


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


@given(run=runs())
def test_a_run_is_read_back_from_its_config_as_it_was(run, tmp_path_factory):
    assume(not run.model.trust_remote_code)
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(to_yaml(run), "utf-8")
    assert yaml.safe_load(path.read_text("utf-8"))["rank"] == run.rank
    try:
        read = read_run(path)
    # Settings that do not go together are refused, and never read as others.
    except Exception as error:
        assert type(error).__name__ == "UserError"
        return
    assert read == run
    assert run_id(read) == run_id(run)
