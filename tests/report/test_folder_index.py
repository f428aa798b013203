"""index.md: every figure and table of a folder with what it shows, and nothing else."""

import re

import pytest
from support.planted_laws import grid, write
from support.token_tables import token_table, write_run

from pml_cli.report import folder_index
from pml_cli.report.figures.registry import registered

LINE = re.compile(r"- \[([^]]*)\]\(([^)]*)\): (.+)")


def entries(folder):
    """File to meaning, as the index has them."""
    lines = (folder / "index.md").read_text("utf-8").splitlines()
    matches = [LINE.fullmatch(line) for line in lines if line.startswith("-")]
    assert all(matches)
    listed = {match[2]: match[3] for match in matches}
    assert len(listed) == len(matches)
    return listed


def files(folder):
    """What a command has written, a figure by its PNG alone."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = [str(path.relative_to(folder)) for path in paths if path.suffix not in (".svg", ".pdf")]
    return sorted(set(names) - {"index.md"})


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_the_index_of_a_fit_has_every_file(quick, tmp_path, groups):
    write(tmp_path / "runs", *grid(), *(grid(loss="memft_margin") if groups == 2 else []))
    done = quick("fit", "runs", "draws=20", "--all")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("index.md")
    folder = tmp_path / "runs" / "fit"
    listed = entries(folder)
    assert sorted(listed) == files(folder)
    place = "figures" if groups == 1 else "figures/sft"
    assert listed[f"{place}/law-rank.png"] == registered()["law-rank"].meaning
    # Files that are gone by now are not in the next one.
    assert quick("fit", "runs", "draws=20", "figures=false").returncode == 0
    (folder / "law.tex").unlink()
    folder_index.write(folder)
    assert "law.tex" not in entries(folder)


@pytest.mark.slow
def test_the_index_of_a_transition_has_every_file(quick, tmp_path):
    write_run(tmp_path / "runs", "tokens", token_table())
    assert quick("transition", "runs").returncode == 0
    folder = tmp_path / "runs" / "transition"
    listed = entries(folder)
    assert sorted(listed) == files(folder)
    assert listed["transition.png"] == registered()["transition"].meaning


def test_what_several_commands_leave_in_a_folder(tmp_path):
    for name in ("memft-r=8", "ranks", "lasting", "forgetting-a b", "mine", "memft_old"):
        (tmp_path / f"{name}.png").write_text("")
    for name in ("comparison.csv", "ranks.csv", "results.csv", "lasting.json", "notes.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "a run").mkdir()
    assert folder_index.write(tmp_path) == ["index.md"]
    listed = entries(tmp_path)
    assert set(listed) == {
        *("forgetting-a%20b.png", "lasting.png", "memft-r%3D8.png", "ranks.png"),
        *("comparison.csv", "ranks.csv", "results.csv", "lasting.json"),
    }
    assert listed["memft-r%3D8.png"] == registered()["memft"].meaning


def test_of_two_figures_that_begin_alike_the_longer_name_counts(tmp_path):
    (tmp_path / "law-rank.png").write_text("")
    (tmp_path / "law-rather-long.png").write_text("")
    folder_index.write(tmp_path)
    listed = entries(tmp_path)
    assert listed["law-rank.png"] == registered()["law-rank"].meaning
    assert listed["law-rather-long.png"] == registered()["law"].meaning


def test_names_are_no_markup(tmp_path):
    (tmp_path / "law-[x](javascript:y)<b>\x1b.png").write_text("")
    folder_index.write(tmp_path)
    text = (tmp_path / "index.md").read_text("utf-8")
    assert "<b>" not in text and "](javascript" not in text and "\x1b" not in text
    (listed,) = entries(tmp_path)
    assert listed == "law-%5Bx%5D%28javascript%3Ay%29%3Cb%3E%1B.png"


def test_an_index_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "index.md").write_text("# My notes\n")
    assert folder_index.write(tmp_path) == []
    assert (tmp_path / "index.md").read_text() == "# My notes\n"

    (tmp_path / "index.md").unlink()
    assert folder_index.write(tmp_path) == folder_index.write(tmp_path) == ["index.md"]
