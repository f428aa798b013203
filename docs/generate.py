"""What the site has beside the pages of docs/: a hook of MkDocs, named in mkdocs.yml.

- The pages that lie elsewhere (README.md, benchmarks/README.md ...), with their links rewritten,
  and every file of the repository that a page links to.
- The reference of settings and commands, from their declarations.

A page says `../outputs/README.md`, as on GitHub; on the site that is `outputs/index.md`.
"""

from __future__ import annotations

import html
import itertools
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from pml_cli.cli import app
from pml_cli.config.listing import Section, sections
from pml_cli.config.option_files import option_file, options, summary
from pml_cli.config.registry import GROUPS
from pml_cli.config.reports import REPORTS, RUN
from pml_cli.config.setting import value_text

ROOT = Path(__file__).parents[1]

PAGES_ELSEWHERE = (
    "README.md",
    "outputs/README.md",
    "benchmarks/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
)

# Code, which stays as it is, or a link with its text and its target.
CODE_OR_LINK = re.compile(r"```.*?```|`[^`\n]+`|\[([^\[\]]*)\]\(([^)\s]+)\)", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files from outside of docs/, and the reference."""
    inside = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for path in reachable([*PAGES_ELSEWHERE, *inside]):
        if not path.startswith("docs/"):
            source = str(ROOT / path)
            files.append(File.generated(config, site_uri(path), abs_src_path=source))

    files.append(File.generated(config, "reference/settings.md", content=settings_page()))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page."""
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown
    return with_site_links(markdown, repository_path(uri))


# The same page in the repository and on the site.


def site_uri(path: str) -> str:
    """Where a file of the repository is on the site: a folder's README.md is its index."""
    folder, name = posixpath.split(path.removeprefix("docs/"))
    return posixpath.join(folder, "index.md" if name == "README.md" else name)


def repository_path(uri: str) -> str:
    """The file of the repository that a page of the site is."""
    folder, name = posixpath.split(uri)
    path = posixpath.join(folder, "README.md" if name == "index.md" else name)
    return path if (ROOT / path).is_file() else f"docs/{path}"


def reachable(pages: list[str]) -> list[str]:
    """These pages, and all files of the repository that a page links to, then those of these."""
    paths = list(dict.fromkeys(pages))
    # The list grows while it is read.
    for path in paths:
        if path.endswith(".md"):
            text = (ROOT / path).read_text("utf-8")
            targets = [linked(match[2], path)[0] for match in links(text)]
            paths += dict.fromkeys(t for t in targets if (ROOT / t).is_file() and t not in paths)
    return paths


def links(text: str) -> Iterator[re.Match[str]]:
    """The links of a text that lead to files, or to places of the same page."""
    for match in CODE_OR_LINK.finditer(text):
        if match[2] and not re.match(r"\w+:", match[2]):
            yield match


def linked(target: str, page: str) -> tuple[str, str]:
    """The file of the repository that a link leads to, and the place in it: `#anchor` or nothing.

    Args:
        target: as the page has it.
        page: the file with the link.
    """
    file, hash_sign, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), file)) if file else page
    return path, hash_sign + anchor


def with_site_links(text: str, page: str) -> str:
    """The text of a page with links to where things are on the site.

    Args:
        page: the file that has the text.
    """
    here = posixpath.dirname(site_uri(page))
    pieces = []
    end = 0
    for match in links(text):
        path, anchor = linked(match[2], page)
        link = f"[{match[1]}]({os.path.relpath(site_uri(path), here or '.')}{anchor})"
        # A site has no listings of folders.
        if (ROOT / path).is_dir():
            link = match[1]
        pieces += [text[end : match.start()], link]
        end = match.end()
    return "".join([*pieces, text[end:]])


# The reference.


def commands_page() -> str:
    """Every command with its help text."""
    group: Any = typer.main.get_command(app)
    parts = [
        "# Commands",
        "What `pml COMMAND --help` prints. The settings of the groups are on a "
        "[page of their own](settings.md).",
    ]
    root = typer.Context(group, info_name="pml", terminal_width=80, **group.context_settings)
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=name, parent=root, terminal_width=80)
        # The options of the groups close many of the helps, and stand on the other page.
        text = command.get_help(context).partition("OPTIONS OF THE GROUPS")[0].rstrip()
        parts += [f"## pml {name}", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """Every setting with its default, what it takes and what it means."""
    parts = [
        "# Settings",
        "What `pml settings` prints. Each is given as `key=value` to the [commands](commands.md) "
        "that train; those of the groups as `group.key=value`, after `group=option` has chosen the "
        "option. Several values (`rank=4,8`) make a sweep. A command may choose other defaults: "
        "`pml settings COMMAND` lists its own.",
    ]
    for name, of_name in itertools.groupby(sections(), key=attrgetter("name")):
        title = f"pml {name}" if name in REPORTS else name
        parts.append(f"## {'Every run' if name == RUN else title}")
        if name in GROUPS:
            parts.append(options_table(name))
        for section in of_name:
            is_for_some = set(section.options) < set(options(name))
            parts += [f"### {name}={', '.join(section.options)}"] if is_for_some else []
            parts.append(table(["setting", "default", "takes", "meaning"], rows_of(section)))
    return "\n\n".join(parts) + "\n"


def options_table(group: str) -> str:
    """The options of a group, each with a line about it."""
    rows = []
    for option in options(group):
        file = option_file(group, option)
        assert file is not None
        rows.append([cell(f"{group}={option}", code=True), cell(summary(file))])
    return table(["option", "what it is"], rows)


def rows_of(section: Section) -> Iterator[list[str]]:
    """A row a setting."""
    for listed in section.settings:
        default = "to be given" if listed.required else cell(value_text(listed.default), code=True)
        takes = ", ".join(filter(None, [listed.type, listed.allowed, listed.unit]))
        special = [f"{value}: {meaning}" for value, meaning in listed.special.items()]
        meaning = f"{listed.help} ({'; '.join(special)})" if special else listed.help
        yield [cell(listed.key, code=True), default, cell(takes), cell(meaning)]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str, *, code: bool = False) -> str:
    """A text as a cell of a table shows it, without any meaning for Markdown."""
    plain = re.sub(r"[|*_`\[\]\\]", lambda sign: f"&#{ord(sign[0])};", html.escape(text))
    return f"<code>{plain}</code>" if code else plain
