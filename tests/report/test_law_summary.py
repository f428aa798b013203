"""What `pml fit` prints by itself: the answer of one group on a screen, several in a table."""

from dataclasses import replace

from support.law_groups import fit_quietly
from support.planted_laws import exact_recall, exponential_cells, runs_of, write
from support.printing import printed

from pml_cli.law.findings import finding
from pml_cli.report.tables.law_summary import MOST_LINES, summary, summary_table

NEXT = "pml predict outputs/sweep seqlen=1024"


def test_the_law_its_intervals_and_its_errors_come_first(group):
    lines = printed(summary(group, NEXT))
    analysis = group.analysis
    assert lines[0].startswith(group.name) and "saturated" in lines[0]
    assert lines[1] == f"chosen law: {analysis.chosen.name}"
    assert lines[2] == analysis.law.form.notation("r")
    low, high = analysis.intervals["alpha"]
    assert (
        f"alpha {analysis.law.parameters['alpha']:.3f} (95 %: {low:.2f} to {high:.2f})"
        in (lines[3])
    )
    assert "MAPE" in lines[4]
    assert f"unseen  MAPE {analysis.unseen.mape:.2f} %" in lines[5]
    assert lines[-1] == f"next: {NEXT}"


def test_one_group_leaves_a_line_of_the_screen_for_the_folder(group):
    many = [finding("setting_varies", setting="lr", values=(k / 8, 9.0)) for k in range(40)]
    grave = finding("form_rejected", p=1e-9, percent=12.0)
    warned = replace(group, warnings=[grave, *many])
    lines = printed(summary(warned, NEXT))

    assert MOST_LINES - 3 < len(lines) < MOST_LINES
    assert max(map(len, lines)) <= 80
    words = " ".join(lines)
    assert "none of pml's forms fits these cells" in words
    assert "more remarks: --all" in words


def test_notes_are_left_to_all_and_a_law_that_fails_is_warned_of(group):
    note = finding("noise_by_gain", power=0.2)
    fails = finding("extrapolation_fails", held_out=40.0, fitted=2.0)
    told = replace(group, warnings=[note], conclusions=[fails])
    words = " ".join(printed(summary(told, NEXT)))
    assert "the noise is not proportional" not in words
    assert "warning: Do not extrapolate" in words


def test_cells_without_a_law_say_why_and_what_to_run(unidentified):
    words = " ".join(printed(summary(unidentified, NEXT)))
    assert "NOT_IDENTIFIED: only 2 distinct unsaturated ranks (2, 4)" in words
    assert "Next: `pml sweep rank=" in words
    # Nothing can be asked of a law that there is not.
    assert NEXT not in words


def test_recall_is_of_its_own_cells_also_where_none_is_left_for_the_gain(tmp_path):
    cells = exponential_cells(texts=3)
    never = [False] * len(cells.rank)
    write(tmp_path, *runs_of(cells, exact_match=exact_recall(cells), converged=never))
    said = fit_quietly(tmp_path, draws=50, show_all=False, unconverged="drop")
    (line,) = [line for line in said.splitlines() if line.startswith("recall ")]
    # Every rank was trained, and what lies between them is no extrapolation.
    assert f"({cells.length.min():g} tokens)" in line
    assert "extrapolated" not in said.partition("recall ")[2].partition("warning")[0]


def test_several_groups_have_a_line_each_and_each_remark_once(group, unidentified):
    single = finding("single_text")
    known = replace(group, name="known", slug="known", warnings=[single])
    other = replace(known, name="other [b]", slug="other")
    lines = printed(summary_table([known, other, replace(unidentified, name="few")], NEXT))
    words = " ".join(lines)

    assert lines[0].split()[0] == "group"
    for name in ("known", "other [b]"):
        (row,) = [line for line in lines if line.startswith(f"{name} ")]
        assert f"{group.analysis.law.parameters['alpha']:.3f}" in row
    assert any(line.startswith("few ") and "none" in line for line in lines)
    assert words.count("only one text") == 1
    assert "warning: known (and 1 other group): only one text" in words
    assert "warning: few: only 2 distinct unsaturated ranks" in words
    assert lines[-1] == f"next: {NEXT}"
    assert max(map(len, lines)) <= 80


def test_numbers_of_one_group_are_not_given_to_others(group):
    near, far = (finding("form_rejected", p=1e-9, percent=percent) for percent in (12.0, 30.0))
    groups = [
        replace(group, name=name, slug=name, warnings=[found])
        for name, found in (("a", near), ("b", far), ("c", near))
    ]
    words = " ".join(printed(summary_table(groups, NEXT)))
    assert "warning: a (2 other groups: similar): " in words
    words = " ".join(printed(summary_table([groups[0], groups[2]], NEXT)))
    assert "warning: a (and 1 other group): " in words
