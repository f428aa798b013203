"""`--json`: standard output is one JSON document, whatever else is said goes to standard error."""

import json

import pytest

FEW = ("train.steps=6", "model.device=cpu")


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


def document(done, code=0):
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout, parse_constant=refuse)


def test_a_sweep_counts_its_cells_and_names_the_failed(quick, tmp_path):
    command = ("sweep", "rank=2,4", "seqlen=8", "train.lr=1e-2,1e30", "out=runs", *FEW, "--json")
    done = quick(*command)
    content = document(done, code=1)
    assert "4 cells: 4 to train" in done.stderr and "2 failed" in done.stderr

    assert (content["out"], content["cells"], content["done"]) == ("runs", 4, 2)
    assert [result["rank"] for result in content["results"]] == [2, 4]
    assert {(tmp_path / result["folder"]).is_dir() for result in content["results"]} == {True}
    failed = content["failed"]
    assert len(failed) == 2
    assert all("train.lr (now 1e+30)" in reason for reason in failed.values())

    # A part of the cells, in the same folder: the others are not of this sweep.
    part = quick("sweep", "rank=2", "seqlen=8", "train.lr=1e-2", "out=runs", *FEW, "--json")
    content = document(part)
    assert (content["cells"], content["done"], content["failed"]) == (1, 1, {})
    assert [result["rank"] for result in content["results"]] == [2]


def test_fit_and_transition_print_their_files(quick, tmp_path):
    assert quick("sweep", "rank=1,2,4", "seqlen=8,16", "out=runs", *FEW).returncode == 0
    law = document(quick("fit", "runs", "draws=20", "figures=false", "--json"))
    assert law == json.loads((tmp_path / "runs/fit/law.json").read_text("utf-8"))
    done = quick("transition", "runs", "figures=false", "--json")
    written = json.loads((tmp_path / "runs/transition/transition.json").read_text("utf-8"))
    assert document(done) == written
    assert "written to runs/transition" in done.stderr


def test_memft_has_the_comparison_too(quick):
    command = ("memft", "loss=sft,memft_ot", "rank=1,2", "seqlen=8", *FEW, "--json")
    done = quick(*command)
    content = document(done)
    assert (content["cells"], content["done"], len(content["results"])) == (4, 4, 4)
    assert {row["method"] for row in content["comparison"]} == {"memft_ot"}
    assert {row["method"] for row in content["ranks"]} == {"sft", "memft_ot"}
    assert "comparison: outputs/memft/comparison.csv" in done.stderr


def test_a_probe_prints_its_result_or_why_it_failed(quick, tmp_path):
    done = quick("probe", "rank=2", "seqlen=8", *FEW, "--json")
    content = document(done)
    folder = tmp_path / content["folder"]
    written = json.loads((folder / "result.json").read_text("utf-8"))
    assert content["failed"] is None
    for name in ("rank", "delta_loss", "token_accuracy", "converged"):
        assert content["result"][name] == written[name]
    assert "run folder: " in done.stderr

    done = quick("probe", "rank=2", "seqlen=8", "train.lr=1e30", *FEW, "--json")
    content = document(done, code=1)
    assert content["result"] is None and "train.lr (now 1e+30)" in content["failed"]


@pytest.mark.parametrize("command", ["sweep", "memft", "probe", "capacity"])
def test_quiet_leaves_tables_and_warnings_beside_json(quick, command):
    values = {
        "sweep": ("rank=1,200", "seqlen=4"),
        "memft": ("rank=200", "seqlen=4", "loss=sft,memft_ot"),
        "probe": ("rank=200", "seqlen=4"),
        "capacity": ("rank=200", "seqlen=4"),
    }[command]
    asked = (command, *values, "train.steps=2", "model.device=cpu", "--json")
    done = quick(*asked, "--quiet")
    document(done)
    assert "rank=200: what adapter=mlp_block adds" in done.stderr
    for word in ("to train", "step ", "done already", "attempt"):
        assert word not in done.stderr
    # The table, and where the files are.
    assert len(done.stderr.splitlines()) > 3 and "outputs/" in done.stderr


@pytest.mark.parametrize("command", [("sweep",), ("memft",), ("capacity",)])
def test_a_dry_run_has_no_results_to_print(quick, command, tmp_path):
    done = quick(*command, "--dry-run", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --json: not with --dry-run")
    assert not list(tmp_path.iterdir())
