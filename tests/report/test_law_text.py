"""Sentences of findings: every code has one, and it reads well for ranks and for parameters."""

import math
import string

import pytest

from pml_cli.law import findings
from pml_cli.law.capacity import UnseenGain
from pml_cli.law.findings import CODES, finding
from pml_cli.law.forms import LINKS
from pml_cli.law.model_selection import EDGE, LENGTHS, RANKS, TEXT
from pml_cli.law.observations import PARAMETERS, RANK
from pml_cli.law.parameters import NATURAL_NAMES
from pml_cli.report import law_text
from pml_cli.report.law_text import sentence

AXES = (RANK, PARAMETERS)
EXAMPLES = {
    "axis": "size",
    "distinct": (4, 8),
    "count": 2,
    "needed": 3,
    "cells": 2,
    "parameters": 4,
    "parameter": "alpha",
    "bound": 0.01,
    "link": "hill",
    "limit": "hard",
    "level": 9.5,
    "offset": True,
    "cause": finding("constant_gain"),
    "clusters": 3,
    "b": -1.0,
    "low": -2.0,
    "high": -0.5,
    "robust": 0.6,
    "paper": 0.4,
    "correlation": 0.7,
    "coverage": 0.5,
    "draws": 2,
    "reason": "saturated",
    "setting": "lr",
    "values": (0.01, 0.001),
    "all_saturated": True,
    "ranks": (1, 2, 4),
    "lengths": (64, 128),
    "alpha": 0.6,
    "beta": 0.5,
    "held_out": 30.0,
    "fitted": 2.0,
    "intervals": {"alpha": (0.1, 0.9)},
    "model": "smollm2",
    "missing": 11,
    "runs": 12,
    "p": 0.003,
    "text": "text/2",
    "percent": 30.0,
    "expected": 0.08,
    "censored": True,
    "slope": 0.6,
    "error": "Singular matrix",
    "power": 0.2,
}


def example(code, **values):
    return finding(code, **{name: EXAMPLES[name] for name in CODES[code]} | values)


def test_every_code_has_one_template_and_no_template_is_left_over():
    templates, functions = set(law_text.TEMPLATES), set(law_text.SENTENCES)
    assert not templates & functions
    assert templates | functions == set(CODES)


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
@pytest.mark.parametrize("code", CODES)
def test_a_sentence_is_complete(code, axis):
    text = sentence(example(code), axis)
    assert text and "{" not in text and "None" not in text and "  " not in text
    assert text[-1] in string.ascii_letters + string.digits + ").%`"
    if axis is PARAMETERS:
        # ranks are named in the settings of a sweep alone
        assert "rank" not in text.replace("rank=", "").replace("rank, length and seeds", "")


@pytest.mark.parametrize(
    ("code", "values", "rank", "parameters"),
    [
        (
            "few_distinct_values",
            {},
            "only 2 distinct unsaturated ranks (4, 8): alpha and b",
            "only 2 distinct unsaturated parameter counts (4, 8): alpha and b",
        ),
        (
            "few_distinct_values",
            {"axis": "length", "distinct": (64,)},
            "only 1 distinct unsaturated length (64): beta and b",
            "only 1 distinct unsaturated length (64): beta and b",
        ),
        (
            "recall_nowhere",
            {},
            "larger ranks or shorter texts",
            "more parameters or shorter texts",
        ),
        (
            "poor_coverage",
            {},
            "largest ranks and longest lengths holds 50 %",
            "most parameters and longest lengths holds 50 %",
        ),
        ("effect_of_doubling", {}, "for twice the rank,", "for twice the parameters,"),
        (
            "exponent_at_lower_bound",
            {"parameter": "beta"},
            "follow a power of length",
            "follow a power of length",
        ),
        ("cells_excluded", {"cells": 1}, "1 cell excluded from the laws of the gain", "1 cell"),
    ],
)
def test_a_sentence_names_the_size_that_the_law_is_about(code, values, rank, parameters):
    assert rank in sentence(example(code, **values), RANK)
    assert parameters in sentence(example(code, **values), PARAMETERS)


@pytest.mark.parametrize(
    ("level", "offset", "what"),
    [
        (True, False, "the stored amount x"),
        (False, True, "the gain above b"),
        (False, False, "the gain"),
    ],
)
def test_what_doubling_multiplies_is_a_quantity_of_the_law(level, offset, what):
    found = example("effect_of_doubling", level=level, offset=offset)
    assert f"ceiling, {what} is multiplied" in sentence(found, RANK)


def test_no_finding_is_no_sentence():
    assert sentence(None, RANK) == ""


def test_a_cause_is_part_of_the_sentence():
    text = sentence(example("bootstrap_missing", cause=example("few_clusters")), RANK)
    assert text.startswith("no bootstrap: only 3 clusters")


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_parameters_and_held_out_cells_have_a_meaning(axis):
    for name in NATURAL_NAMES:
        assert "{" not in law_text.meaning(name, axis)
    names = {law_text.held_out_name(what, axis) for what in (EDGE, RANKS, LENGTHS, TEXT)}
    assert len(names) == 4


def test_findings_are_checked():
    with pytest.raises(KeyError):
        finding("no_such_code")
    with pytest.raises(ValueError, match="few_clusters"):
        finding("few_clusters", clusters=3)
    assert {findings.OK, findings.BOUND_HIT, findings.NOT_IDENTIFIED} == {
        "OK",
        "BOUND_HIT",
        "NOT_IDENTIFIED",
    }


@pytest.mark.parametrize(
    ("gain", "low", "high", "effect"),
    [
        (0.5, -0.1, 1.1, "none"),
        (0.5, 0.2, 0.8, "source_learned"),
        (-0.5, -0.8, -0.2, "source_damaged"),
        (0.5, math.nan, math.nan, "unknown"),
    ],
)
def test_the_gain_on_unseen_text_is_put_into_words(gain, low, high, effect):
    control = UnseenGain(gain=gain, low=low, high=high, least=-1.0, most=1.0, cells=3)
    assert control.effect == effect
    (line,) = law_text.capacity_lines([], control)
    assert line.endswith(law_text.UNSEEN_EFFECTS[effect])


def test_links_are_named_in_sentences_by_their_names():
    text = sentence(finding("k_at_upper_bound", link="hill", limit=LINKS["hill"].limit), RANK)
    assert "hill" in text and "hard" in text
