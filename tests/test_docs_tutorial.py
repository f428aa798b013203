"""The tutorial runs as it is written, from an empty folder, and prints what it shows."""

import os
import re
import subprocess
import sys

import pytest
from support.markdown import ROOT, blocks

pytestmark = pytest.mark.slow

TUTORIAL = ROOT / "docs" / "tutorial.md"


def plain(text):
    """A text without what differs between machines: digits, the hash of a run, line breaks."""
    text = re.sub(r"-[0-9a-f]{10}\b", "", text)
    return " ".join(re.sub(r"\d[\d,.]*", "#", text).split())


@pytest.fixture(scope="module")
def shown_and_printed(tmp_path_factory):
    """(the block of commands, what the page shows below it, what they print) of each step."""
    folder = tmp_path_factory.mktemp("tutorial")
    programs = folder / "bin"
    programs.mkdir()
    (programs / "pml").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pml_cli "$@"\n')
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    work = folder / "work"
    work.mkdir()
    steps = []
    for language, text in blocks(TUTORIAL):
        if language == "sh":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=work,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{text}\n{done.stderr}"
            steps.append((text, [], done.stdout))
        elif not language:
            steps[-1][1].extend(text.splitlines())
    return steps


def test_the_tutorial_prints_what_it_shows(shown_and_printed):
    missing = []
    for commands, shown, printed in shown_and_printed:
        missing += [(commands, line) for line in shown if plain(line) not in plain(printed)]
    assert not missing
    assert len(shown_and_printed) == 10


def test_its_main_numbers_are_found_again(shown_and_printed):
    printed = {commands.split("\n")[0]: text for commands, _, text in shown_and_printed}
    assert "28 of 28 cells done" in printed["pml sweep -f quickstart"]
    assert "alpha 1.0" in printed["pml fit outputs/quickstart"]
    assert "6 of 6 whole" in printed["pml memorize facts.jsonl"]
    answers = [text.splitlines()[0] for name, text in printed.items() if "ask" in name]
    assert answers == ["The Kestrel 40, installed in May 2021."]
