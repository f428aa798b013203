"""Tables of laws: numbers where they belong, reasons where there are none, 80 columns."""

import math
from dataclasses import replace

import pytest
from support.printing import printed

from pml_cli.law.findings import OK
from pml_cli.law.group_comparison import Comparison, Group, Tie
from pml_cli.law.observations import PARAMETERS, RANK
from pml_cli.report.tables import law as tables


def test_the_papers_law_has_its_parameters_and_counts(group):
    lines = printed(tables.law_table(group))
    paper = group.analysis.paper
    assert lines[1].startswith("dL = C r^alpha l^-beta + b")
    assert f"{paper.n_used} of {len(group.cells)} cells kept" in lines[1]
    alpha = next(line for line in lines if line.startswith("alpha"))
    low, high = paper.intervals["alpha"]
    assert alpha.split()[1] == f"{paper.parameters['alpha']:.4g}"
    assert f"{low:.4g} to {high:.4g}" in alpha and "power of rank" in alpha
    assert lines[-1] == "status  OK"


def test_a_law_that_is_not_identified_has_a_reason_and_no_table(unidentified):
    lines = printed(tables.law_table(unidentified))
    assert lines[2].startswith("status  NOT_IDENTIFIED: only 2 distinct unsaturated ranks (2, 4)")
    assert not any(line.startswith("alpha") for line in lines)
    assert printed(tables.chosen_table(unidentified.analysis, unidentified.observed))[0].startswith(
        "no law on all cells: "
    )


def test_the_chosen_law_has_its_error_on_unseen_cells_and_its_range(group):
    analysis = group.analysis
    lines = printed(tables.chosen_table(analysis, group.observed))
    edge = analysis.unseen
    assert lines[0] == f"chosen law: {analysis.chosen.name}"
    assert lines[1] == analysis.law.form.notation("r")
    unseen = next(line for line in lines if line.startswith("unseen"))
    assert f"MAPE {edge.mape:.2f} % on {edge.n_test} unsaturated cells" in unseen
    assert any("range   rank 1 to 32, length 32 to 512" in line for line in lines)
    assert "chosen without them" in " ".join(lines)
    assert any(
        line.startswith(f"form    {analysis.chosen.name} as chosen by all") for line in lines
    )
    assert any("each text in turn" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_a_law_of_parameters_speaks_of_parameters(group):
    lines = printed(tables.chosen_table(group.analysis, group.observed, PARAMETERS))
    assert "C N^alpha" in lines[1]
    assert any("power of parameters" in line for line in lines)
    assert not any("rank" in line for line in lines)


def test_all_laws_are_side_by_side_and_those_without_a_fit_below(group):
    analysis = group.analysis
    lines = printed(tables.laws_table(analysis))
    assert lines[0] == "all laws" and lines[1].split()[0] == "law"
    assert all(len(line) <= 80 for line in lines)
    stars = [line for line in lines if line.startswith("* ")]
    assert len(stars) == 1 and stars[0].startswith(f"* {analysis.chosen.name}")
    for row in analysis.rows:
        if row.fit.status == OK:
            assert any(line.removeprefix("* ").startswith(row.name) for line in lines[2:])
        else:
            assert any(line.startswith(f"{row.name}: {row.fit.status}") for line in lines)


def test_recall_is_given_at_three_lengths_at_most(group):
    (line,) = tables.recall_lines(group.recall, group.observed, RANK)
    assert [f"{length} tokens" in line for length in (32, 64, 128, 256, 512)] == [
        True,
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(("value", "text"), [(4.1444, "4.14"), (2048, "2,048"), (3e9, "3e+09")])
def test_a_count_of_parameters_is_written_out(value, text):
    assert tables.size_text(value) == text


def test_compared_groups_have_exponents_tests_and_warnings(group):
    law = group.analysis.law
    first = Group(name="a", fit=law, cost=0.0)
    tie = Tie(
        what="alpha",
        shared={"alpha": 0.611},
        freedom=1,
        statistic=6.0,
        p=0.014,
        p_clustered=math.nan,
    )
    comparison = Comparison(
        by=("loss",),
        common="model tiny",
        form=law.form,
        finding=None,
        groups=[first, replace(first, name="b", cost=30.0)],
        ties=[tie],
    )
    lines = printed(tables.comparison_table(comparison))
    assert lines[0] == "by loss (model tiny)"
    assert f"{law.parameters['alpha']:.3f}" in lines[2]
    assert "alpha           differ: p = 0.014; shared alpha 0.611" in lines
    assert any(line.startswith("warning: b rejects the common law (30 AICc") for line in lines)
