"""The script in an adapter's README.md, run as its reader would run it."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

TIMEOUT_SECONDS = 300


def script_of(run_folder):
    """The script in the README.md of a run's adapter."""
    text = (Path(run_folder) / "adapter/README.md").read_text("utf-8")
    return re.search(r"^(`{3,})python\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL).group(2)


def run_script(run_folder, question=None, *, here=False):
    """What the script prints, but for the line end of `print`.

    Args:
        run_folder: of a finished run.
        question: takes the place of QUESTION; None: that of the first sample.
        here: in this process, which is quicker, instead of one of its own.
    """
    script = script_of(run_folder)
    if question is not None:
        script = _with_question(script, question)
    run = _printed_here if here else _printed
    return run(run_folder, script).removesuffix("\n")


def run_script_for(run_folder, questions, *, here=False):
    """As `run_script`, for several questions: the model is loaded once."""
    asked = json.dumps(list(questions))
    loop = f"import json\nfor question in {asked}:\n    print(json.dumps(answer(question)))"
    run = _printed_here if here else _printed
    # The script itself prints an answer first.
    lines = run(run_folder, f"{script_of(run_folder)}\n{loop}\n").splitlines()
    return [json.loads(line) for line in lines[len(lines) - len(questions) :]]


def _with_question(script, question):
    first, newline, rest = script.partition("\n")
    assert first.startswith("QUESTION = ")
    return f"QUESTION = {question!r}{newline}{rest}"


def _printed_here(run_folder, script):
    before = Path.cwd()
    os.chdir(Path(run_folder) / "adapter")
    try:
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(script, "README.md", "exec"), {})
    finally:
        os.chdir(before)
    return printed.getvalue()


def _printed(run_folder, script):
    """Standard output of a script that is run in the adapter's folder, without pml."""
    kept = ("PATH", "HOME", "HF_HOME", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(run_folder) / "adapter",
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    return done.stdout
