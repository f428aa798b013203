"""What a probe and a sweep of facts leave and say of each sample."""

import json

import pytest

FACTS = (
    ("When was the Kestrel built?", " In June 1987."),
    ("Which pump is in hall 3?", " The Kestrel 40"),
    ("Wie heißt die Straße?", " Ölmühlweg 7"),
)


@pytest.fixture
def facts(tmp_path):
    """facts.jsonl with three facts in the folder that `quick` works in."""
    lines = [json.dumps({"query": query, "target": target}) for query, target in FACTS]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines), "utf-8")
    return ["data=jsonl", "data.path=facts.jsonl", "model.device=cpu"]


def rows_of(folder):
    lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_probe_names_the_samples_that_failed(facts, quick, tmp_path):
    done = quick("probe", *facts, "rank=2", "seqlen=30", "train.steps=4", "out=o")
    assert done.returncode == 0
    (folder,) = (tmp_path / "o").glob("tiny-*")
    rows = rows_of(folder)
    assert [row["target"] for row in rows] == [target for _, target in FACTS[: len(rows)]]
    result = json.loads((folder / "result.json").read_text())
    assert result["samples"] == len(rows) and not any(row["whole"] for row in rows)
    assert result["exact_match"] == 0

    for row, (question, _) in zip(rows, FACTS, strict=False):
        assert question in row["prompt"]
        error = row["first_error"]
        assert f"expected {error['expected']!r} (p " in done.stdout
        assert f"got {error['got']!r}" in done.stdout
        assert row["decoded"] != row["target"]
    assert f"samples:    o/{folder.name}/samples.jsonl" in done.stdout


def test_a_sweep_names_those_of_its_best_run(facts, quick, tmp_path):
    args = ["rank=1,2", "seqlen=30", "train.steps=4", "train.decode=false", "out=o"]
    done = quick("sweep", *facts, *args)
    assert done.returncode == 0
    folders = sorted((tmp_path / "o").glob("tiny-*"))
    assert len(folders) == 2
    for folder in folders:
        assert all(row["decoded"] is None for row in rows_of(folder))
    heading = "recalled by the best of the longest runs (rank 1, "
    assert done.stdout.count(heading) == 1
    assert f"ask it: pml ask o/{folders[0].name} '{FACTS[0][0]}'" in done.stdout
    assert done.stdout.count("wrong from position") == len(rows_of(folders[0]))


def test_what_is_decoded_does_not_depend_on_the_pack(facts, quick, tmp_path):
    args = [*facts, "seqlen=30", "train.steps=12", "train.lr=0.03"]
    assert quick("sweep", *args, "rank=1,2,8", "out=packed").returncode == 0
    assert quick("sweep", *args, "rank=8", "out=solo").returncode == 0
    (solo,) = (tmp_path / "solo").glob("tiny-*")
    for row, packed in zip(rows_of(solo), rows_of(tmp_path / "packed" / solo.name), strict=True):
        # Sums of another batch round otherwise.
        assert packed["first_error"].pop("p") == pytest.approx(row["first_error"].pop("p"))
        assert packed == row
