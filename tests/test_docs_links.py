"""Every link of every page leads to a file, and to a heading in it."""

from pathlib import Path
from urllib.parse import unquote

import pytest
from support.markdown import DOCS, PAGES, ROOT, anchors, name_of, relative_links


def linked(page):
    """(target as written, file, anchor) of each link into the repository."""
    for target in relative_links(page):
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        yield target, file, anchor


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    dead = []
    for target, file, anchor in linked(page):
        assert file.is_relative_to(ROOT), f"{target}: outside of the repository"
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert not dead


def test_every_page_of_docs_is_reached_from_the_readme():
    reached = [ROOT / "README.md"]
    # The list grows while it is read.
    for page in reached:
        files = {file for _, file, _ in linked(page) if file.suffix == ".md" and file.exists()}
        reached += sorted(files - set(reached))
    assert not [name_of(page) for page in set(DOCS) - set(reached)]


def test_a_heading_has_the_anchor_of_github(tmp_path):
    page = Path(tmp_path / "page.md")
    page.write_text("# The `loss`: a, b_c\n## Do they?\n## Do they?\ntext\n====\n")
    assert anchors(page) == ["the-loss-a-b_c", "do-they", "do-they-1", "text"]
