"""law.json: what is written is what the records say; a file that is no report is one line."""

import dataclasses
import json

import pytest
from support.law_groups import fit_quietly
from support.planted_laws import grid, write

from pml_cli.errors import UserError
from pml_cli.law import law_json
from pml_cli.law.law_json import load


def keys_of(record):
    return {field.name for field in dataclasses.fields(record)}


def test_the_file_has_the_keys_of_the_records(law_report):
    content = json.loads((law_report / "fit" / "law.json").read_text("utf-8"))
    (group,) = content["groups"]
    assert set(content) == keys_of(law_json.LawFile)
    assert set(group) == keys_of(law_json.GroupRecord)
    assert set(group["fit"]) == keys_of(law_json.PaperRecord)
    assert set(group["held_out"]) == keys_of(law_json.HeldOutRecord)
    assert set(group["recall"]) == keys_of(law_json.RecallRecord)
    for law in group["laws"]:
        on_all_cells = law["name"] not in law_json.ESTIMATORS
        record = law_json.LikelihoodRecord if on_all_cells else law_json.PowerLawRecord
        assert set(law) == keys_of(record), law["name"]


def test_the_held_out_error_of_the_paper_is_that_of_its_check(law_report):
    content = json.loads((law_report / "fit" / "law.json").read_text("utf-8"))
    (group,) = content["groups"]
    paper = next(law for law in group["laws"] if law["name"] == "paper")
    check = paper["checks"]["largest ranks and longest lengths"]
    assert group["held_out"]["mape"] == pytest.approx(check["mape"])
    assert group["held_out"]["n_test"] == check["n_test"]
    assert group["held_out"]["ranks"] == [16, 24] and group["held_out"]["lengths"] == [256]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ('{"format": 1, "groups": []}', "format 1"),
        ("[]", "not a law.json"),
    ],
)
def test_a_file_that_is_no_report(tmp_path, text, message):
    (tmp_path / "law.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_a_report_without_a_law_says_why(tmp_path):
    write(tmp_path, *grid(ranks=(4,)))
    fit_quietly(tmp_path, draws=0, out=str(tmp_path))
    with pytest.raises(UserError, match="no law was identified: only 1 distinct unsaturated rank"):
        load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, group, law: content.pop("draws"),
        lambda content, group, law: content.pop("x"),
        lambda content, group, law: group.update(recall=None),
        lambda content, group, law: group.update(chosen="paper"),
        lambda content, group, law: group.update(chosen="no law"),
        lambda content, group, law: law["theta"].update(alpha=None),
        lambda content, group, law: law.pop("centre"),
        lambda content, group, law: law.update(clusters=0),
    ],
)
def test_a_damaged_report_is_one_line(law_report, tmp_path, damage):
    content = json.loads((law_report / "fit" / "law.json").read_text("utf-8"))
    (group,) = content["groups"]
    chosen = next(law for law in group["laws"] if law["name"] == group["chosen"])
    damage(content, group, chosen)
    (tmp_path / "law.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path)
