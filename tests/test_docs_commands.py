"""Every `pml ...` line of the pages is one that pml takes: command, options, settings, values."""

import re

import pytest
import typer
from support.markdown import PAGES as ALL_PAGES
from support.markdown import ROOT, inline_tokens, name_of
from support.page_commands import FILES, PAGES, pml_lines
from support.shell_lines import commands

from pml_cli.cli import app

# The changelog tells of command lines that were, CONTRIBUTING.md of a loss to be written.
LIVING = [page for page in ALL_PAGES if page.name not in ("CHANGELOG.md", "CONTRIBUTING.md")]
COMMANDS = typer.main.get_command(app).commands


def spoken_lines(page):
    """As `pml_lines`, of the commands within sentences: whole ones, with settings or paths."""
    spans = {t.content for t in inline_tokens(page) if t.type == "code_inline"}
    # Others may hold a quote that is never closed.
    spans = {span for span in spans if "pml " in span}
    whole = [span for span in sorted(spans) if not re.search(r"\.\.\.|[\[<]|= |=$", span)]
    found = [words for span in whole for words in commands(span) if words[0] == "pml"]
    return [words[1:] for words in found if len(words) > 2]


def test_the_recipes_name_every_command_that_takes_a_dry_run():
    page = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("Each is a command"))
    taking = {
        name
        for name, command in COMMANDS.items()
        if any("--dry-run" in option.opts for option in command.params)
    }
    assert set(re.findall(r"`pml (\w+)`", line)) == taking


@pytest.fixture
def taken(quick, tmp_path):
    """taken(words): what is wrong with a command line; nothing is trained or read."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def check(words):
        name, *arguments = words
        options = [option for p in COMMANDS[name].params for option in p.opts]
        if "--print-config" in options:
            done = quick(*words, *([] if "--print-config" in words else ["--print-config"]))
            return done.stderr if done.returncode else ""
        # Commands without settings: options and arguments are all there is.
        try:
            COMMANDS[name].make_context(name, arguments)
        except Exception as error:
            return str(error)
        return ""

    return check


@pytest.mark.parametrize("page", [p for p in PAGES if pml_lines(p)], ids=name_of)
def test_what_a_page_shows_is_taken(page, taken):
    faults = {" ".join(words): taken(words) for words in pml_lines(page)}
    assert not {line: fault for line, fault in faults.items() if fault}


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in LIVING if spoken_lines(p)], ids=name_of)
def test_what_a_page_speaks_of_is_taken(page, taken):
    faults = {" ".join(words): taken(words) for words in spoken_lines(page)}
    assert not {line: fault for line, fault in faults.items() if fault}


@pytest.mark.parametrize(
    "line",
    [
        "pml sweep rank=4 --dry-run-please",
        "pml sweep train.step=4",
        "pml probe data=jsonl data.path=nowhere.jsonl",
        "pml status a b",
        "pml fit draws=-1",
    ],
)
def test_what_pml_refuses_is_seen(line, taken):
    (words,) = commands(line)
    assert taken(words[1:])


def test_a_block_is_taken_apart():
    block = """\
cat > facts.jsonl <<'END'
pml is no command here
END
pip install . && HF_HUB_OFFLINE=1 pml sweep -f law \\
    rank=4   # a comment
pml ask RUN "Which pump?" - --json < questions.txt | jq .answer
"""
    assert commands(block) == [
        ["cat"],
        ["pip", "install", "."],
        ["pml", "sweep", "-f", "law", "rank=4"],
        ["pml", "ask", "RUN", "Which pump?", "-", "--json"],
        ["jq", ".answer"],
    ]
