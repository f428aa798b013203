"""The pages of the documentation, read as GitHub reads them: links, anchors, blocks of code."""

import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

# It comes with rich.
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *DOCS,
    ROOT / "benchmarks" / "README.md",
    ROOT / "outputs" / "README.md",
    *sorted((ROOT / "pml_cli").rglob("README.md")),
]
GITHUB = MarkdownIt("commonmark").enable("table")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@cache
def tokens(page):
    return GITHUB.parse(page.read_text("utf-8"))


def inline_tokens(page):
    return [inner for token in tokens(page) for inner in token.children or []]


def relative_links(page):
    """The targets of links and images that lead into the repository, as they are written."""
    targets = [token.attrGet("href") or token.attrGet("src") for token in inline_tokens(page)]
    return [target for target in targets if target and not re.match(r"\w+:", target)]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    names = []
    seen = Counter()
    parsed = tokens(page)
    for opening, heading in pairwise(parsed):
        if opening.type == "heading_open":
            text = "".join(inner.content for inner in heading.children)
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            names.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return names


def blocks(page):
    """The blocks of code of a page: (language, text) each."""
    return [(token.info.strip(), token.content) for token in tokens(page) if token.type == "fence"]


def shell_blocks(page):
    return [text for language, text in blocks(page) if language == "sh"]
