"""Completion of overrides: in real interactive bash and zsh, after `pml --install-completion`."""

import os
import pty
import select
import shutil
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from pml_cli.config.completion import (
    complete_memorize,
    complete_override,
    complete_settings,
    complete_sweep_file,
    report_completer,
)
from pml_cli.config.option_files import SHORT_KEYS
from pml_cli.config.registry import GROUPS
from pml_cli.config.reports import Fit, Lasting, Predict, Transition

complete_fit = report_completer(Fit)
complete_lasting = report_completer(Lasting)
complete_predict = report_completer(Predict)
complete_transition = report_completer(Transition)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def complete(monkeypatch):
    """Completion as zsh and fish ask for it: whole words."""
    monkeypatch.delenv("COMP_WORDS", raising=False)

    def ask(*words: str, config_dir: Path | None = None) -> list[str]:
        context = typer_context(overrides=words[:-1], config_dir=config_dir)
        return complete_override(context, words[-1])

    return ask


def typer_context(**params: Any) -> Any:
    """What completion reads of a `typer.Context`."""
    return types.SimpleNamespace(params=params)


def in_bash(monkeypatch, *pieces: str) -> list[str]:
    """Completion as bash asks for it: split at "=".

    Typer turns an "=" that stands alone into an empty word.
    """
    monkeypatch.setenv("COMP_WORDS", "\n".join(["pml", "sweep", *pieces]))
    monkeypatch.setenv("COMP_CWORD", str(1 + len(pieces)))
    incomplete = "" if pieces[-1] == "=" else pieces[-1]
    return complete_override(typer_context(overrides=pieces[:-1]), incomplete)


def test_memorize_leaves_files_to_the_shell_and_knows_its_defaults(monkeypatch):
    monkeypatch.delenv("COMP_WORDS", raising=False)
    context = typer_context(overrides=[], config_dir=None)
    assert complete_memorize(context, "") == []
    assert "data.prompt_key=" in complete_memorize(context, "data.p")
    assert "adapter.targets=" in complete_memorize(context, "adapter.t")[0]


def test_settings_completes_groups_and_their_options(monkeypatch):
    monkeypatch.delenv("COMP_WORDS", raising=False)
    context = typer_context(config_dir=None)
    assert complete_settings(context, "tra") == ["train", "transition"]
    assert complete_settings(context, "data=j") == ["data=jsonl"]
    assert {*GROUPS, "fit", "run", "memorize"} < set(complete_settings(context, ""))
    assert complete_settings(context, "train.stop") == ["train.stop", "train.stop_margin"]


def test_keys_of_groups_and_their_settings(complete):
    assert complete("mod")[0] == "model="
    assert {"model.path=", "model.dtype="} < set(complete("mod"))
    assert set(complete("")) == {f"{key}=" for key in (*GROUPS, *SHORT_KEYS)}
    assert "rank=" not in complete("rank=4", "")


def test_keys_follow_the_option_chosen(complete):
    assert not complete("data.random")
    assert complete("data=mixed", "data.random")[0] == "data.random_share="
    assert "adapter.alpha=" in complete("adapter=mlp_block,linear", "adapter.")
    assert "data.source=" not in complete("data.")


def test_a_single_key_comes_with_its_default_so_that_no_space_follows(complete):
    assert complete("train.sched") == ["train.schedule=", "train.schedule=linear"]


def test_values(complete):
    assert complete("model=t") == ["model=tiny"]
    assert complete("model=tiny,q") == ["model=tiny,qwen3_0_6b", "model=tiny,qwen3_8b"]
    assert complete("train.schedule=c") == ["train.schedule=constant", "train.schedule=cosine"]
    assert complete("train.decode=") == ["train.decode=true", "train.decode=false"]
    assert complete("loss=memft_ot", "loss.when_done=z") == ["loss.when_done=zero"]
    assert complete("model.stream=") == [
        "model.stream=true",
        "model.stream=false",
        "model.stream=null",
    ]
    assert complete("rank=") == []
    assert complete("seqlen=32,a") == ["seqlen=32,all"]
    assert complete("nonsense=") == []


def test_paths(complete, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").touch()
    assert complete("data=text", "data.path=te") == ["data.path=texts/a.txt"]
    assert complete("data=text", f"data.path={tmp_path}/texts/a") == [
        f"data.path={tmp_path}/texts/a.txt"
    ]


def test_user_s_options(complete, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.yaml").write_text("source: phonebook\n")
    (tmp_path / "data/broken.yaml").write_bytes(b"\xff")
    assert complete("data=mi", config_dir=tmp_path) == ["data=mine", "data=mixed"]
    assert "data.digits=" in complete("data=mine", "data.", config_dir=tmp_path)
    (tmp_path / "data/phonebook.yaml").write_text("digits: 9\n")
    assert "data.digits=" in complete("data=phonebook", "data.", config_dir=tmp_path)
    assert complete("data=broken", "data.", config_dir=tmp_path)


def test_bash_gets_what_follows_the_equals_sign(monkeypatch):
    assert in_bash(monkeypatch, "model", "=", "t") == ["tiny"]
    assert "tiny" in in_bash(monkeypatch, "model", "=")
    assert in_bash(monkeypatch, "rank", "=", "4", "model", "=", "tiny,sm") == ["tiny,smollm2_135m"]
    assert in_bash(monkeypatch, "data", "=", "mixed", "data.ra")[0] == "data.random_share="
    assert in_bash(monkeypatch, "data", "=", "mixed", "")[0] == "model="


def test_predict_offers_its_own_settings(monkeypatch):
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert complete_predict(typer_context(), "ba") == ["base=", "base=..."]
    assert complete_predict(typer_context(), "draws") == []


def test_fit_offers_the_sizes_that_the_law_may_be_about(monkeypatch):
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert complete_fit(typer_context(), "x=") == ["x=rank", "x=parameters", "x=effective"]


def test_lasting_offers_its_own_settings(monkeypatch, tmp_path):
    monkeypatch.delenv("COMP_WORDS", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("book.txt").touch()
    context = typer_context()
    assert complete_lasting(context, "tok") == ["tokens=", "tokens=2000"]
    assert complete_lasting(context, "decode=f") == ["decode=false"]
    assert complete_lasting(context, "device=c") == ["device=cpu", "device=cuda"]
    assert complete_lasting(context, "text=b") == ["text=book.txt"]
    assert complete_lasting(context, "") == []


def test_fit_offers_settings_and_leaves_paths_to_the_shell(monkeypatch):
    monkeypatch.delenv("COMP_WORDS", raising=False)
    context = typer_context()
    assert complete_fit(context, "fig") == ["figures=", "figures=true"]
    assert complete_fit(context, "figures=f") == ["figures=false"]
    assert complete_fit(context, "") == []


def test_transition_offers_its_settings_and_no_groups(monkeypatch):
    monkeypatch.delenv("COMP_WORDS", raising=False)
    context = typer_context()
    assert complete_transition(context, "te") == ["text=", "text=..."]
    assert complete_transition(context, "r") == ["rank=", "rank=..."]
    assert complete_transition(context, "mod") == []
    assert complete_transition(context, "") == []


def test_shipped_sweeps(monkeypatch, tmp_path):
    (tmp_path / "law.yaml").touch()
    monkeypatch.setattr("pml_cli.config.completion.shipped", lambda _: tmp_path)
    assert complete_sweep_file("l") == ["law"]
    assert complete_sweep_file("x") == []


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, env)

    def type(self, keys: str, until: str, seconds: float = 20) -> str:
        """Send keys and read until a text appears or the time is over.

        Returns:
            What the shell printed, without bells.
        """
        os.write(self.fd, keys.encode())
        printed = ""
        deadline = time.monotonic() + seconds
        while until not in printed and time.monotonic() < deadline:
            readable, _, _ = select.select([self.fd], [], [], 0.1)
            if readable:
                printed += os.read(self.fd, 4096).decode(errors="replace").replace("\x07", "")
        return printed

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source ~/.bashrc"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "fpath+=~/.zfunc; autoload -Uz compinit; compinit -u; "
        "autoload -U +X _pml; _pml 2>/dev/null",
    ),
}


@pytest.fixture(params=SHELLS)
def terminal(request, tmp_path):
    """An interactive shell in which `pml --install-completion` has been run."""
    command, start = SHELLS[request.param]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    pml = tmp_path / "bin/pml"
    pml.parent.mkdir()
    pml.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pml_cli "$@"\n')
    pml.chmod(0o755)
    env = {
        "HOME": str(tmp_path),
        "PATH": f"{pml.parent}:{os.environ['PATH']}",
        "TERM": "dumb",
        "PS1": "$ ",
    }
    shell = Terminal(command, env)
    assert "done0" in shell.type(
        f"unset zle_bracketed_paste; pml --install-completion; {start}; echo do''ne$?\n", "done0"
    )
    yield shell
    shell.close()


@pytest.mark.slow
def test_in_a_real_shell(terminal):
    for typed, completed in [
        ("pml sweep model=t", "model=tiny "),
        ("pml sweep model=tiny,sm", "model=tiny,smollm2_135m "),
        ("pml sweep train.sched", "train.schedule="),
        ("pml sweep data=mixed data.ra", "data.random_share="),
        ("pml memft train.schedule=l", "train.schedule=linear "),
        ("pml fit fig", "figures="),
    ]:
        printed = terminal.type(f"{typed}\t", completed, seconds=10)
        assert completed in printed, f"{typed!r} became {printed!r}"
        # Control-U empties the line.
        terminal.type("\x15", "\x00", seconds=0.2)
    printed = terminal.type("pml sweep adapter=\t\t", "mlp_block", seconds=10)
    assert "linear" in printed
    assert "mlp_block" in printed
