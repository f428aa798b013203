"""The site is built without a warning, from the very pages that GitHub shows."""

import html
import os
import re
import subprocess
import sys

import pytest
import typer
from support.markdown import GITHUB, PAGES, ROOT, anchors, name_of

from pml_cli.cli import app
from pml_cli.config.option_files import options
from pml_cli.config.registry import GROUPS, declared
from pml_cli.config.setting import dotted_keys

pytest.importorskip("material", reason="the site needs the extra docs")

pytestmark = pytest.mark.slow

# What GitHub and the site must agree on: an item, a cell or a heading that one of them does not see
# is a list or a table that it reads as text.
ELEMENTS = ("h2", "h3", "li", "table", "td", "pre", "img")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def on_site(site, page):
    """The HTML of a page's text."""
    path = name_of(page).removeprefix("docs/")
    path = path.replace("README.md", "index.md").replace(".md", ".html")
    return article(site / path)


def article(file):
    found = re.search(r"<article.*?</article>", file.read_text("utf-8"), re.DOTALL)
    return found[0]


def counts(text):
    return {tag: len(re.findall(f"<{tag}[ >]", text)) for tag in ELEMENTS}


def linked_from_the_readme(page):
    """Every page but those of packages, of which the site has what others link to."""
    return not name_of(page).startswith("pml_cli/")


@pytest.mark.parametrize("page", filter(linked_from_the_readme, PAGES), ids=name_of)
def test_a_page_reads_as_on_github(page, site):
    text = on_site(site, page)
    assert counts(text) == counts(GITHUB.render(page.read_text("utf-8")))
    assert set(anchors(page)) == set(re.findall(r'<h[1-6] id="([^"]*)"', text))


def test_nothing_is_fetched_from_a_network(site):
    for file in site.rglob("*.html"):
        text = file.read_text("utf-8")
        assert not re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:https?:)?//', text)


def test_the_reference_has_every_setting_and_command(site):
    settings = html.unescape(article(site / "reference" / "settings.html"))
    for group in GROUPS:
        for owner in declared(group).values():
            assert all(f"{group}.{key}</code>" in settings for key in dotted_keys(owner))
        assert all(f"{group}={option}</code>" in settings for option in options(group))

    commands = article(site / "reference" / "commands.html")
    for name in typer.main.get_command(app).commands:
        assert f'<h2 id="pml-{name}">' in commands
