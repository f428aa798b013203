"""The registry of figures: each has a meaning, and its files are written or removed together."""

import re
from pathlib import Path

import pytest

from pml_cli.report.figures import registry

PAGE = Path(__file__).parents[2] / "docs" / "law.md"


class Sheet:
    """Stands in for a matplotlib figure: writes its format instead of a drawing."""

    dpi = 100

    def findobj(self, _kind):
        return []

    def savefig(self, file, format, **_options):
        file.write(format.encode())


def test_each_figure_has_a_meaning_of_one_line():
    specs = registry.registered()
    assert {"law", "law-rank", "transition", "memft", "ranks", "lasting", "recall"} <= set(specs)
    for name, spec in specs.items():
        assert spec.name == name
        assert spec.meaning and "\n" not in spec.meaning and not spec.meaning.endswith(".")


def test_figures_of_a_report_are_those_whose_name_begins_with_it():
    names = set(registry.of_report("law"))
    assert "law" in names and "law-rank" in names
    assert not any(name.startswith(("lasting", "transition")) for name in names)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="law-rank"):
        registry.figure("law-rank", "another figure of this name")(lambda view: None)


def test_a_figure_is_written_in_every_format_or_its_files_are_removed(tmp_path):
    stem = tmp_path / "figures" / "law-rank"
    assert registry.write_figure(stem, Sheet()) == ["law-rank.png", "law-rank.svg", "law-rank.pdf"]
    assert {path.read_text() for path in stem.parent.iterdir()} == {"png", "svg", "pdf"}
    assert registry.write_figure(stem, None) == []
    assert list(stem.parent.iterdir()) == []


def test_a_new_figure_needs_nothing_but_its_function(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry.registered()))

    @registry.figure("new", "the page of a report of its own")
    def page(group):
        return Sheet()

    @registry.figure("new-detail", "drawn for the group that carries it")
    def detail(group):
        return Sheet() if group == "first" else None

    names = registry.write_group_figures(tmp_path, "new", {"a": "first", "b": "second"})
    assert names == [
        *(f"new-{group}.{suffix}" for group in "ab" for suffix in ("png", "svg", "pdf")),
        "figures/ (3 files)",
    ]
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert files == {"new-a.png", "new-b.png", "figures/a/new-detail.png"}


@pytest.mark.parametrize("name", registry.of_report("law"))
def test_the_page_of_the_law_names_the_figures_of_a_fit(name):
    assert re.search(rf"`(figures/)?{name}(\.png)?`", PAGE.read_text("utf-8"))
