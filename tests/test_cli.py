"""The command line as a user meets it: exit codes, a line for each fault, quick help."""

import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

from pml_cli import cli
from pml_cli.config.option_files import options
from pml_cli.config.registry import GROUPS
from pml_cli.config.reports import REPORTS, Fit
from pml_cli.config.schema import Request
from pml_cli.config.setting import dotted_keys

ROOT = Path(__file__).parent.parent
TRAINING = ("probe", "sweep", "memft", "memorize")
COMMANDS = [
    *TRAINING,
    *"capacity fit report lasting forgetting transition predict measure ask".split(),
]
HELPED = [*COMMANDS, "settings", "track"]


def pml(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "pml_cli", *args],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["probe", "rnak=4"], "error: rnak: no such key; did you mean 'rank'?"),
        (["swep"], "Did you mean 'sweep'?"),
        (["settings", "trian"], "error: trian: not a group, command or key; did you mean 'train'?"),
        (["settings", "lr"], "error: lr: not a group, command or key; did you mean 'train.lr'?"),
        (
            ["settings", "memorise"],
            "memorise: not a group, command or key; did you mean 'memorize'?",
        ),
        (["settings", "train.lrr"], "error: train.lrr: no such key; did you mean 'train.lr'?"),
        (["settings", "train.lr=1"], "error: train.lr=1: train.lr has no options"),
        (["settings", "loss=stf"], "error: loss=stf: no such option; did you mean 'sft'?"),
        (["settings", "fit=x"], "error: fit=x: fit has no options"),
        (["sweep", "--dryrun"], "--dry-run"),
        (["sweep", "-f", "nowhere.yaml"], "error: nowhere.yaml: no such sweep file"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(args, expected, tmp_path):
    done = pml(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_print_config_of_a_sweep(tmp_path):
    done = pml("sweep", "--print-config", "rank=4,8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 cells" in done.stdout
    assert yaml.safe_load(done.stdout)["rank"] == 4
    assert yaml.safe_load(done.stdout)["out"] == "outputs/sweep"
    assert not list(tmp_path.iterdir())


def test_version_and_bare_command():
    assert pml("--version").stdout.startswith("pml 0")
    bare = pml()
    assert bare.returncode == 0
    assert "START HERE" in bare.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from pml_cli import cli\n"
        "for command in [[], *([name] for name in sys.argv[1:])]:\n"
        "    try: cli.main([*command, '--help'])\n"
        "    except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'pandas', 'matplotlib', 'transformers', 'numpy',"
        " 'scipy', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, *HELPED], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
    )


@pytest.fixture
def out(capsys, monkeypatch):
    """Run the command line in this process; returns exit code and what was printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(args))
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


@pytest.mark.parametrize("command", HELPED)
def test_help_fits_eighty_columns_and_has_examples(command, out):
    code, text, _ = out(command, "--help")
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert text.count(f"pml {command}") >= 4


@pytest.mark.parametrize("command", ["probe", "sweep", "memft"])
def test_help_names_every_option_of_every_group(command, out):
    words = out(command, "--help")[1].split()
    for group in GROUPS:
        assert f"{group}=" in words
        assert not [option for option in options(group) if option not in words]


@pytest.mark.parametrize("command", REPORTS)
def test_help_names_every_setting_with_its_default(command, out):
    text = out(command, "--help")[1]
    entries = {
        line.split()[0] for line in text.splitlines() if line.startswith("    ") and "=" in line
    }
    for key in dotted_keys(REPORTS[command]):
        assert any(entry.startswith(f"{key}=") for entry in entries), key
    if command == "fit":
        assert {"saturated_below=0.693147", "draws=4000", "figures=true", "x=rank"} <= entries


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_load(command, out, tmp_path, monkeypatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("a text")
    (tmp_path / "facts.csv").write_text("question,answer\nWhich pump?,the Kestrel 40\n")
    rows = [f'{{"question": "Which pump is in hall {n}?", "answer": "P{n}"}}\n' for n in range(100)]
    (tmp_path / "facts.jsonl").write_text("".join(rows))
    lines = [
        line.strip()
        for line in out(command, "--help")[1].splitlines()
        if line.startswith(f"    pml {command}")
    ]
    assert len(lines) >= 4
    # Shipped sweeps have a test of their own.
    for line in [line for line in lines if " -f " not in line]:
        arguments = shlex.split(line)[1:]
        code, _, err = out(*dict.fromkeys([*arguments, "--print-config"]))
        assert (code, err) == (0, ""), line


@pytest.mark.parametrize("command", ["probe", "sweep", "memft"])
def test_commands_get_the_request_and_give_the_exit_code(command, out, monkeypatch):
    calls = []

    def run(request, console, **flags):
        calls.append((request, flags))
        return 1

    _stub(monkeypatch, command, run)
    arguments = [] if command == "probe" else ["--dry-run"]
    assert out(command, "rank=2", *arguments)[0] == 1

    ((request, flags),) = calls
    assert isinstance(request, Request)
    assert request.runs[0].rank == 2
    every_flag = {"dry_run": True, "fail_fast": False, "wait": None, "retry": True}
    every_flag |= {"show_all": False, "as_json": False, "quiet": False}
    expected = {
        "probe": {"as_json": False, "quiet": False},
        "sweep": every_flag | {"design": None},
        "memft": every_flag,
    }
    assert flags == expected[command]


def test_fit_separates_paths_from_settings(out, monkeypatch):
    calls = []

    def run(paths, settings, console, by, show_all, as_json, quiet):
        assert not as_json and not quiet
        calls.append((paths, settings, by, show_all))
        return 0

    _stub(monkeypatch, "fit", run)
    assert out("fit", "a", "figures=false", "b", "--by", "model,data", "--all")[0] == 0
    assert out("fit")[0] == 0
    assert calls == [
        ([Path("a"), Path("b")], Fit(figures=False), ["model", "data"], True),
        ([Path("outputs")], Fit(), [], False),
    ]


def test_interrupt_is_130_and_other_errors_pass(out, monkeypatch):
    def interrupt(request, console, **_flags):
        raise KeyboardInterrupt

    def crash(request, console, **_flags):
        raise ZeroDivisionError

    _stub(monkeypatch, "probe", interrupt)
    assert out("probe")[0] == 130
    _stub(monkeypatch, "probe", crash)
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def _stub(monkeypatch, command, run):
    """Put a `run` in the place of a command's own."""
    name = f"pml_cli.commands.{command}"
    module = types.ModuleType(name)
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)


def test_only_compose_imports_hydra():
    package = Path(str(importlib.util.find_spec("pml_cli").origin)).parent
    importers = [
        p.name
        for p in package.rglob("*.py")
        if any(w in p.read_text() for w in ("import hydra", "from hydra"))
    ]
    assert importers == ["compose.py"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_one_line(out, monkeypatch, capsys, error):
    def run(*_arguments, **_options):
        raise error

    monkeypatch.setattr(cli, "_train", run)
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "rank=1"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory (")


@pytest.mark.parametrize("words", [["sweep", "rank=1", "--dry-run"], ["fit"], ["status", "runs"]])
def test_a_present_folder_that_has_been_removed_is_one_line(tmp_path, monkeypatch, capsys, words):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "error: the current directory no longer exists; cd to another one\n"
