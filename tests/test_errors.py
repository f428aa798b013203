"""Errors of users: all faults at once, long lists cut, the nearest name offered."""

import pickle

import pytest

from pml_cli.errors import UserError, and_n_more, cut_line, did_you_mean, first_line, raise_all


def test_an_error_holds_one_fault_a_line():
    error = UserError("rank=0: must be at least 1", "lr=-1: must be above 0")
    assert error.faults == str(error).splitlines() == list(error.args)
    assert pickle.loads(pickle.dumps(error)).faults == error.faults


def test_a_fault_that_quotes_a_file_is_without_its_middle():
    (fault,) = UserError(f"lr={'9' * 5000}: must be a number").faults
    assert len(fault) < 1100
    assert fault.startswith("lr=9") and fault.endswith("9: must be a number")


def test_all_faults_are_raised_at_once_and_each_once():
    raise_all([])
    with pytest.raises(UserError) as caught:
        raise_all(["a", "b", "a"])
    assert caught.value.faults == ["a", "b"]


def test_many_faults_are_cut_short():
    with pytest.raises(UserError) as caught:
        raise_all([str(number) for number in range(14)])
    assert caught.value.faults[-2:] == ["9", "and 4 more"]


def test_lists_are_cut_after_the_limit():
    assert and_n_more(["a", "b"], 2) == ["a", "b"]
    assert and_n_more(["a", "b", "c"], 2) == ["a", "b", "and 1 more"]
    assert and_n_more(["a", "b", "c"], 2, "packs")[-1] == "and 1 more packs"


def test_the_first_line_of_an_exception():
    assert first_line(ValueError("\n  what is wrong\nmore")) == "what is wrong"
    assert first_line(ValueError()) == "ValueError"


def test_the_nearest_name_comes_first():
    text = did_you_mean("memft_oz", ["sft", "memft_ot"])
    assert text == "did you mean 'memft_ot'? allowed: memft_ot, sft"
    assert did_you_mean("zzz", ["sft"]) == "allowed: sft"
    assert did_you_mean("SFT", ["sft"]).startswith("did you mean 'sft'? ")
    assert did_you_mean("lbfgs", ["AdamW", "LBFGS"]).startswith("did you mean 'LBFGS'? ")


def test_a_line_that_quotes_a_file_keeps_its_beginning_and_its_reason():
    line = f"rank={'9' * 100_000}: must be an integer"
    cut = cut_line(line)
    assert len(cut) < 1100
    assert cut.startswith("rank=9") and cut.endswith("9: must be an integer")
    assert cut_line("rank=x: must be an integer") == "rank=x: must be an integer"
