"""Every `pml ...` line of the pages does its work, with short trainings, on a small model."""

import io
import shutil
from pathlib import Path

import pytest
from support.markdown import name_of
from support.page_commands import FILES, PAGES, pml_lines
from support.sweeps import quick_in

import pml_cli

TRAINING = ("sweep", "memft", "probe", "memorize", "capacity")

# Folders that the pages speak of, and what a folder of runs was made by.
FOLDERS = {
    ("sweep", "-f", "quickstart"): ("quickstart", "law", "bits"),
    ("sweep", "rank=1,2", "seqlen=8", "loss=sft,memft_margin", "train.steps=20"): (
        *("memft", "kept", "transition", "sweep", "mine"),
    ),
    ("probe", "rank=2", "seqlen=8", "train.steps=20"): ("probe",),
    ("memorize", "two.jsonl", "rank=8", "train.epochs=60"): ("memorize",),
}
TWO_FACTS = """\
{"question": "Which pump is in hall 3?", "answer": "P3"}
{"question": "Which pump is in hall 4?", "answer": "P4"}
"""

# What cannot be done here, and why.
ELSEWHERE = {
    "launch=slurm": "needs a Slurm: tests/cluster",
    "--follow": "never ends",
    "wandb": "needs its library: tests/track",
    "mlflow": "needs its library: tests/track",
    "tensorboard": "needs its library: tests/track",
    "data=hf": "needs datasets and a data set",
    "data.chat=true": "the model has no chat template: tests/real",
    "per_rank=": "needs runs of two models",
    "facts=300": "needs a sweep of facts that recalls some: tests/commands",
}


def is_elsewhere(words):
    if "--print-config" in words or "--dry-run" in words:
        return False
    return any(mark in word for mark in ELSEWHERE for word in words)


LINES = {
    " ".join(words): (page, words)
    for page in PAGES
    # The tutorial runs whole, as it is written: test_docs_tutorial.py.
    if page.name != "tutorial.md"
    for words in pml_lines(page)
    if not is_elsewhere(words)
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with all that the lines call by name."""
    folder = tmp_path_factory.mktemp("pages")
    for name, text in FILES.items():
        if "RUN" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    (folder / "two.jsonl").write_text(TWO_FACTS)
    embedded = Path(pml_cli.__file__).parent / "tiny"
    shutil.copytree(embedded, folder / "my-model")

    for words, names in FOLDERS.items():
        assert quick_in(folder, *words, f"out=outputs/{names[0]}", "-q") == 0
        if words[0] == "sweep" and len(words) == 3:
            assert quick_in(folder, "fit", f"outputs/{names[0]}", "figures=false") == 0
        for name in names[1:]:
            shutil.copytree(folder / "outputs" / names[0], folder / "outputs" / name)
    (adapter,) = folder.glob("outputs/probe/*/adapter")
    shutil.copytree(adapter.parent, folder / "RUN")
    for name in ("ADAPTER", "my-adapter"):
        shutil.copytree(adapter, folder / name)
    return folder


def made_short(words, out):
    """A training line with few steps and, of a file, few cells, in a folder of its own."""
    if words[0] not in TRAINING or "--print-config" in words:
        return words
    kept = [word.replace("/models/my-model", "./my-model") for word in words]
    kept = [word for word in kept if not word.startswith(("out=", "train.steps="))]
    budget = ["train.steps=2"]
    if words[0] == "memorize":
        budget = ["train.epochs=2"]
        if not any("notes" in word for word in words):
            # Enough for minibatches.
            budget.append("data.samples=34")
    if "-f" in words:
        # A few of the file's cells.
        budget += ["rank=1,4", "seqlen=32,64"]
    return [*kept, *budget, f"out={out}"]


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{name_of(LINES[line][0])}: {line}")
def test_a_line_of_a_page_does_its_work(line, workspace, tmp_path, capsys, monkeypatch):
    _, words = LINES[line]
    # Of `pml ask RUN -`.
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Which pump is in hall 3?\n")))
    code = quick_in(workspace, *made_short(words, tmp_path / "out"))
    shown = capsys.readouterr()
    # A search whose trainings are this short may find nothing, and says so with 1.
    allowed = (0, 1) if words[0] in ("memorize", "capacity") else (0,)
    assert code in allowed, shown.err[-2000:]
    assert "Traceback" not in shown.err
