"""The prompt of streams: a few tokens on a model whose first position is a sink, else none."""

import shutil
from pathlib import Path

import pytest
import yaml
from support.models import local
from support.sinks import HUB_ID, plant_sink, without_weights
from support.sweeps import FEW

from pml_cli.config.cache_key import forget_files
from pml_cli.config.schema import TINY, Model, Run
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources.mixed import MixedData
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.data.stream import SINK_PROMPT
from pml_cli.launch.packing import check
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.results.read import read_runs

STREAMS = [RandomData, TextData, MixedData]


@pytest.fixture(scope="module")
def sunk(tmp_path_factory):
    return plant_sink(tmp_path_factory.mktemp("models") / "sunk")


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_on_a_sink_has_the_prompt(stream, sunk):
    (cell,) = check([Run(seqlen=8, model=local(sunk), data=stream())])
    assert cell.run.data.prompt == SINK_PROMPT
    tokenizer = open_tokenizer(cell.run.model)
    (sample,) = cell.samples
    assert tokenizer.decode(sample.prompt) == tokenizer.decode(tokenizer.begin) + SINK_PROMPT
    # The target is the one that it would be without.
    (without,) = check([Run(seqlen=8, model=local(sunk), data=stream(prompt=""))])
    assert without.samples[0].target == sample.target
    assert without.id != cell.id


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_on_another_model_has_none(stream):
    (cell,) = check([Run(seqlen=8, data=stream())])
    assert cell.run.data.prompt == ""
    assert cell.id == check([Run(seqlen=8, data=stream(prompt=""))])[0].id


def test_what_is_given_stays(sunk):
    for prompt in ("", "My words:"):
        run = Run(seqlen=8, model=local(sunk), data=TextData(prompt=prompt))
        assert resolved_run(run).data.prompt == prompt


def test_facts_have_their_own_prompts(sunk):
    assert not hasattr(resolved_run(Run(model=local(sunk), data=PhonebookData())).data, "prompt")


def test_a_model_without_a_tokenizer_has_no_prompt():
    model = Model(weights="random", architecture={"model_type": "llama"}, path="none", name="x")
    assert resolved_run(Run(model=model)).data.prompt == ""


def run_folder_of(quick, sunk, out, *more):
    where = ("model=hf", f"model.path={sunk}", f"out={out}")
    result = quick("probe", "data=text", "seqlen=8", *FEW, *where, *more)
    assert result.returncode == 0, result.stderr
    (folder,) = read_runs([out])["folder"]
    return Path(folder), " ".join(result.stdout.split())


def prompt_in(folder):
    return yaml.safe_load((folder / "config.yaml").read_text("utf-8"))["data"]["prompt"]


def test_the_prompt_is_said_and_written(quick, sunk, tmp_path):
    folder, printed = run_folder_of(quick, sunk, tmp_path)
    assert "data.prompt='Text:' for model=sunk: its first position is an attention sink" in printed
    assert "warning" not in printed and prompt_in(folder) == SINK_PROMPT


def test_no_prompt_by_hand_is_warned_of(quick, sunk, tmp_path):
    """Before the training, and by what it has learned."""
    folder, printed = run_folder_of(quick, sunk, tmp_path, "data.prompt=")
    assert "warning: data.prompt='' for model=sunk" in printed and prompt_in(folder) == ""
    assert "warning: the first token is wrong in the run of sunk without a prompt" in printed


def test_a_sweep_warns_at_its_end(quick, sunk):
    where = ("model=hf", f"model.path={sunk}", "launch=inline", "data.prompt=", "data=text")
    done = quick("sweep", "rank=2,4", "seqlen=8", *where, *FEW)
    assert done.returncode == 0, done.stderr
    warned = "warning: the first token is wrong in all 2 runs of sunk without a prompt"
    assert warned in " ".join(done.stdout.split())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    forget_files()
    return without_weights(tmp_path / "hub", monkeypatch)


def test_a_dry_run_says_what_it_assumes(quick, hub):
    """Of a model whose weights were not downloaded; with them, it is measured."""
    request = ["sweep", "--dry-run", "model=hf", f"model.path={HUB_ID}", "rank=1,2", "seqlen=8"]
    result = quick(*request)
    assert result.returncode == 0, result.stderr
    printed = " ".join(result.stdout.split())
    assert "data.prompt='Text:' for model=far: assumed, because its weights are not" in printed

    shutil.copy(TINY / "model.safetensors", hub)
    forget_files()
    result = quick(*request)
    assert result.returncode == 0 and "data.prompt" not in result.stdout


def test_a_sweep_does_not_assume(quick, hub, tmp_path):
    """Without the hub, it says so before anything is trained or written."""
    request = ["sweep", "model=hf", f"model.path={HUB_ID}", "rank=1,2", "seqlen=8"]
    result = quick(*request, f"out={tmp_path / 'out'}")
    assert result.returncode == 2
    assert f"model.path={HUB_ID}: model.safetensors is not on" in result.stderr
    assert not (tmp_path / "out").exists()
