"""data=hf: columns of data sets in local folders, and what a data set counts as."""

import json
import sys

import pytest

from pml_cli.config.schema import Model, Run
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources import hf
from pml_cli.data.sources.hf import HfData
from pml_cli.errors import UserError
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.results.run_id import run_id

datasets = pytest.importorskip("datasets")

TINY = Model(device="cpu")
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def rows():
    """Rows of which one is empty, one null and one blank."""
    texts = [f"Row {i}. The ferry crossed the lake at dawn." for i in range(10)]
    texts[3:6] = ["", None, " \n "]
    chat = [{"role": "user", "content": "Hello"}]
    return [
        {"text": text, "answer": f"A {i}", "number": i, "messages": chat, "nothing": None}
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    write(path)
    return path


def write(folder, name="train.jsonl", content=None):
    lines = [json.dumps(row) for row in content or rows()]
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")


def data(folder, **more):
    return HfData(path=str(folder), **more)


def refusal(settings):
    with pytest.raises(UserError) as caught:
        settings.open(TINY)
    (line,) = caught.value.faults
    return line


def test_rows_without_text_are_left_out(folder):
    (sample,) = data(folder).open(TINY).take(100)
    text = open_tokenizer(TINY).decode(sample.target)
    assert text.startswith("Row 0. The ferry")
    paragraphs = data(folder).text().split("\n\n")
    assert [line.split(".")[0] for line in paragraphs] == [
        f"Row {i}" for i in (0, 1, 2, 6, 7, 8, 9)
    ]


def test_parquet_csv_and_saved_data_sets(folder, tmp_path):
    table = datasets.load_dataset(str(folder), split="train")
    text = data(folder).text()
    for name in ("parquet", "csv"):
        (tmp_path / name).mkdir()
        getattr(table, f"to_{name}")(str(tmp_path / name / f"train.{name}"))
    table.save_to_disk(str(tmp_path / "saved"))
    both = datasets.DatasetDict(train=table, test=table.select([7]))
    both.save_to_disk(str(tmp_path / "both"))

    for name in ("parquet", "csv", "saved", "both"):
        assert data(tmp_path / name).text() == text, name
    assert data(tmp_path / "both", split="test").text().startswith("Row 7.")
    line = refusal(data(tmp_path / "both", split="tset"))
    assert line == "data.split=tset: did you mean 'test'? allowed: test, train"


@pytest.mark.parametrize("column", ["messages", "number", "nothing"])
def test_what_is_not_text_is_not_written_out(folder, column):
    assert refusal(data(folder, column=column)) == (
        f"data.column={column}: holds no text; columns of text: text, answer"
    )


def test_a_column_that_is_not_there(folder):
    line = refusal(data(folder, column="anser"))
    assert line == "data.column=anser: did you mean 'answer'? allowed: answer, text"


def test_a_column_without_any_text(folder):
    write(folder, content=[{"text": ""}, {"text": None}, {"text": " "}])
    assert "column text of split train has no text in any of its 3 rows" in refusal(data(folder))


@pytest.mark.parametrize(
    ("more", "message"),
    [({"split": "tset"}, "tset"), ({"name": "none"}, "none"), ({"path": "org/none"}, "org/none")],
)
def test_a_data_set_that_cannot_be_loaded(folder, more, message):
    assert message in refusal(HfData(**{"path": str(folder)} | more))


def test_a_file_is_no_data_set(folder):
    line = refusal(data(folder / "train.jsonl"))
    assert "a file; data=hf takes a folder or a hub id" in line


def test_datasets_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install" in refusal(HfData(path="x"))


# -- what counts as the same data


def id_of(settings):
    return run_id(resolved_run(Run(model=TINY, data=settings)))


def fresh_id(settings):
    from pml_cli.results import run_id as module

    module.content_hash.cache_clear()
    return id_of(settings)


def test_a_folder_counts_by_its_content(folder, tmp_path):
    before = fresh_id(data(folder))
    (folder / ".DS_Store").touch()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").touch()
    assert fresh_id(data(folder)) == before

    moved = folder.rename(tmp_path / "moved")
    assert hash_of(fresh_id(data(moved))) == hash_of(before)

    write(moved, content=rows()[:8])
    assert hash_of(fresh_id(data(moved))) != hash_of(before)
    write(moved)
    write(moved, "test.jsonl")
    assert hash_of(fresh_id(data(moved))) != hash_of(before)


def hash_of(name):
    return name.rsplit("-", 1)[1]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The commits of a data set that was downloaded before; the hub cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hf._commit.cache_clear()
    refs = tmp_path / "hub" / "datasets--org--set" / "refs"
    refs.mkdir(parents=True)
    for name, commit in COMMITS.items():
        (refs / name).write_text(commit, "utf-8")


@pytest.mark.parametrize(
    ("given", "commit"),
    [(None, COMMITS["main"]), ("v1", COMMITS["v1"]), ("c" * 40, "c" * 40), ("v2", "v2")],
)
def test_a_hub_data_set_counts_by_its_commit(hub, given, commit):
    asked = HfData(path="org/set", revision=given)
    assert resolved_run(Run(model=TINY, data=asked)).data.revision == commit
    assert id_of(asked) == id_of(HfData(path="org/set", revision=commit))
    assert id_of(asked) != id_of(HfData(path="org/set", revision="d" * 40))


def test_a_data_set_that_was_never_seen_has_no_commit(hub):
    assert resolved_run(Run(model=TINY, data=HfData(path="org/other"))).data.revision is None


def test_a_folder_has_no_revision(folder):
    with pytest.raises(UserError, match=r"data\.revision=v1: only for a data set on the hub"):
        resolved_run(Run(model=TINY, data=data(folder, revision="v1")))
