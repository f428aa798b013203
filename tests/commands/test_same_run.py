"""What counts as the same run, as a user sees it: nothing is trained twice, nothing is mixed."""

import json
import shutil

import pytest
from support.marks import slow
from support.sweeps import FEW

from pml_cli.config.load import read_run
from pml_cli.config.registry import declared
from pml_cli.config.schema import TINY, Request
from pml_cli.errors import UserError
from pml_cli.launch.driver import plan_sweep, train_sweep
from pml_cli.launch.executors.base import Ending
from pml_cli.launch.manifest import SweepManifest
from pml_cli.launch.observer import RunObserver

FACTS = '{"query": "Box 1:", "target": "red 17"}\n{"query": "Box 2:", "target": "blue 4"}\n'
OTHER_TOKENS = "1 finished before on other tokens"


@pytest.fixture
def base(tmp_path):
    """A model's folder, and facts, beside which the user works."""
    shutil.copytree(TINY, tmp_path / "base")
    (tmp_path / "facts.jsonl").write_text(FACTS)
    return tmp_path / "base"


@pytest.fixture
def ask(tmp_path, quick):
    """ask(verb, *overrides): a short sweep or probe that must succeed."""

    def run(verb="sweep", *overrides, model="base", rank=2):
        # Absolute paths: a process remembers what it has read at a path.
        data = ("data=jsonl", f"data.path={tmp_path / 'facts.jsonl'}")
        settings = (f"rank={rank}", "seqlen=8", *data, *FEW, *overrides)
        done = quick(verb, "model=hf", f"model.path={tmp_path / model}", *settings, "out=o")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def folders(out):
    return sorted(path.name for path in out.iterdir() if path.is_dir() and path.name[0] != ".")


def forget_tokens(out):
    """Plants other tokens into a finished run, as of a template that has changed since."""
    (env,) = out.glob("*/env.json")
    content = json.loads(env.read_text())
    env.write_text(json.dumps(content | {"tokens": "0123456789abcdef"}))
    return env.parent.name


# -- a run is found by its hash


@pytest.mark.parametrize("verb", ["sweep", slow("probe")])
def test_a_renamed_model_keeps_its_runs(tmp_path, base, ask, verb):
    ask(verb)
    (before,) = folders(tmp_path / "o")
    assert before.startswith("base-")
    base.rename(tmp_path / "models--x--snapshot-0a1b2c")
    again = ask(verb, model="models--x--snapshot-0a1b2c")
    assert "1 done already" in again or "done already: " in again
    assert folders(tmp_path / "o") == [before]


def test_a_changed_name_keeps_its_runs_and_status_counts_them_once(tmp_path, base, ask, quick):
    ask("sweep")
    assert "0 to train" in ask("sweep", "model.name=other")
    grown = ask("sweep", "model.name=other", rank="2,3")
    assert "1 to train" in grown
    assert "2 of 2 cells done" in grown
    assert len(folders(tmp_path / "o")) == 2
    status = quick("status", "o").stdout
    assert "2 cells: 2 done" in status


def test_an_interrupted_run_goes_on_under_another_name(tmp_path, base, ask, quick):
    """What was requested first and never trained is the same sweep, not a second one."""
    ask("sweep")
    (name,) = folders(tmp_path / "o")
    shutil.rmtree(tmp_path / "o" / name)
    ask("sweep", "model.name=other")
    assert len(list((tmp_path / "o/.pml/requests").iterdir())) == 1
    assert "1 cell: 1 done" in quick("status", "o").stdout


def test_one_model_under_two_names_in_one_grid_is_one_line(tmp_path, base, quick):
    shutil.copytree(base, tmp_path / "copy")
    done = quick("sweep", "model=hf", f"model.path={base},{tmp_path / 'copy'}", "seqlen=8", "out=o")
    assert done.returncode == 2
    message = "model.name=copy: the same model as base; leave one of them out"
    assert done.stderr == f"error: {message}\n"
    assert not (tmp_path / "o").exists()


def test_models_that_only_an_uncounted_file_tells_apart_are_not_mixed_up(tmp_path, base, quick):
    """Their ids are equal, but not what they would learn."""
    other = tmp_path / "other" / "base"
    shutil.copytree(base, other)
    (other / "special_tokens_map.json").write_text('{"bos_token": "the"}')
    paths = f"model.path={base},{other}"
    done = quick("sweep", "model=hf", paths, "data=text", "seqlen=8", "out=o", *FEW)
    assert done.returncode == 2
    message = f"model.path={other}: the same model as {base}, but for files of its tokenizer"
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


# -- a finished run counts only with the tokens of the plan


def test_a_run_of_other_tokens_is_trained_again_and_kept(tmp_path, base, ask, quick):
    ask("sweep")
    name = forget_tokens(tmp_path / "o")
    old = (tmp_path / "o" / name / "env.json").read_bytes()

    dry = ask("sweep", "--dry-run")
    assert "1 to train" in dry
    assert OTHER_TOKENS in dry
    assert "1 cell: 0 done" in quick("status", "o").stdout

    again = ask("sweep")
    assert OTHER_TOKENS in again
    assert "1 of 1 cells done" in again
    kept = tmp_path / "o/.replaced" / f"{name}-1"
    assert (kept / "env.json").read_bytes() == old
    assert (kept / "adapter").is_dir()
    assert folders(tmp_path / "o") == [name]
    assert "0 to train" in ask("sweep")
    # A report sees one run.
    assert len((tmp_path / "o/results.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_probe_of_other_tokens_is_trained_again_and_kept(tmp_path, base, ask):
    ask("probe")
    name = forget_tokens(tmp_path / "o")
    assert OTHER_TOKENS in ask("probe")
    assert (tmp_path / "o/.replaced" / f"{name}-1").is_dir()
    forget_tokens(tmp_path / "o")
    ask("probe")
    assert len(list((tmp_path / "o/.replaced").iterdir())) == 2
    assert "done already: " in ask("probe")


def test_a_run_that_another_process_has_trained_anew_is_left_in_place(tmp_path, base, ask):
    """Both were asked for it while its tokens were others."""
    ask("sweep")
    (env,) = (tmp_path / "o").glob("*/env.json")
    trained_anew = env.read_bytes()
    forget_tokens(tmp_path / "o")
    run = read_run(env.parent / "config.yaml")
    launch = declared("launch")["local"]()
    plan = plan_sweep(Request(runs=[run], out=tmp_path / "o", launch=launch, swept=["rank"]))
    assert len(plan.outdated) == 1

    env.write_bytes(trained_anew)
    result = (env.parent / "result.json").read_bytes()
    assert train_sweep(plan, RunObserver(), wait=True).ending is Ending.COMPLETE
    assert (env.parent / "result.json").read_bytes() == result
    assert not (tmp_path / "o/.replaced").exists()


@pytest.mark.parametrize("env", [None, slow("{}")])
def test_runs_that_do_not_name_their_tokens_count_as_before(tmp_path, base, ask, env):
    ask("sweep")
    (path,) = (tmp_path / "o").glob("*/env.json")
    if env is None:
        path.unlink()
    else:
        path.write_text(env)
    assert "0 to train" in ask("sweep")


@pytest.mark.parametrize("content", [slow(b""), b"{", slow(b"[]"), slow(b"\xff\xfe")])
def test_a_damaged_env_json_is_trained_again(tmp_path, base, ask, quick, content):
    ask("sweep")
    (path,) = (tmp_path / "o").glob("*/env.json")
    path.write_bytes(content)
    assert "1 cell: 0 done" in quick("status", "o").stdout
    assert OTHER_TOKENS in ask("sweep")
    assert json.loads(path.read_text())["tokens"]


def test_a_damaged_config_harms_no_finished_run(tmp_path, base, ask, quick):
    ask("sweep")
    (path,) = (tmp_path / "o").glob("*/config.yaml")
    path.write_bytes(b"\xff{")
    assert "0 to train" in ask("sweep")
    done = quick("lasting", "o")
    assert done.returncode != 0
    assert f"{path.relative_to(tmp_path)}: not the settings of a run" in done.stdout + done.stderr


def test_workers_refuse_tokens_that_were_not_requested(tmp_path, base, ask):
    """A queued worker starts when the data it was asked for is another."""
    ask("sweep")
    (manifest,) = (tmp_path / "o/.pml/requests").iterdir()
    body = json.loads(manifest.read_text())
    for cell in body["cells"].values():
        cell["tokens"] = "0123456789abcdef"
    manifest.write_text(json.dumps(body))
    with pytest.raises(UserError) as refused:
        SweepManifest.read(manifest).plan_packs()
    assert "1 of 1 cell would learn other tokens here" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_prompt_of_several_lines_is_no_reason_to_train_again(quick):
    asked = ("sweep", "rank=2", "seqlen=8", *FEW, 'data.prompt="First line:\n\tsecond: "')
    assert "1 to train" in quick(*asked).stdout
    assert "0 to train" in quick(*asked).stdout
