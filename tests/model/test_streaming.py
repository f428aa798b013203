"""Models whose lower layers are read one at a time: the same numbers, less memory, and as much of it as was priced."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support.families import FAMILIES
from support.models import adapter_of, own_logits, random_bank, random_ids

from pml_cli.config.schema import Model, Run, Train
from pml_cli.config.setting import faults
from pml_cli.data.sources.random import RandomData
from pml_cli.errors import UserError
from pml_cli.launch.packing import check
from pml_cli.model import dims
from pml_cli.model.loading import load_model
from pml_cli.runs.run_id import run_id
from pml_cli.training.trainer import Cell, Trainer


def local(folder, stream, **settings):
    return Model(
        **(
            {"name": "local", "path": str(folder), "layer": 1, "device": "cpu", "stream": stream}
            | settings
        )
    )


def bytes_held(base):
    """Names of the parameters that have data."""
    return {name for name, p in base.model.named_parameters() if not p.is_meta}


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_is_whole(model_folder, family, kind):
    """Prefix, split pass and full pass to the last bit, in parts of two rows; afterwards only the upper layers are held."""
    whole, streamed = (load_model(local(model_folder(family), stream)) for stream in (False, True))
    adapter, ids = adapter_of(kind, family), random_ids(whole, 3)
    found = []
    for base in (whole, streamed):
        bank = random_bank(base, adapter)
        base.check_split(bank)
        prefix = base.prefix(ids, bank, rows=2)
        with torch.no_grad():
            found.append(
                (
                    prefix.entry,
                    base.upper(prefix.rows(torch.tensor([0, 2]), 9), bank),
                    own_logits(base, ids[:2], bank),
                )
            )
    for theirs, ours in zip(*found, strict=True):
        assert torch.equal(theirs, ours)
    above = 1 if kind == "linear" else 2
    held = {
        name.split(".")[2]
        for name in bytes_held(streamed)
        if name.startswith(("model.layers.", "transformer.h.", "gpt_neox.layers."))
    }
    norms = {"1"} if family in ("gemma2", "gemma3_text") and kind == "mlp_block" else set()
    assert held == {str(i) for i in range(above, 3)} | norms
    assert streamed.weights_hash() == whole.weights_hash()


def test_training_is_the_same_to_the_last_bit(model_folder):
    """Packs on other layers in between: what is held changes, the numbers do not."""
    ends = []
    for stream in (False, True):
        base = load_model(local(model_folder("qwen3"), stream))
        for kind in ("linear", "mlp_block"):
            run = Run(
                rank=3,
                seqlen=20,
                model=base.settings,
                adapter=adapter_of(kind, "qwen3"),
                data=RandomData(),
                train=Train(steps=6),
            )
            (planned,) = check([run])
            cell = Cell(run=run, samples=planned.samples)
            Trainer(base, [cell]).train()
            ends.append(cell.final.nll.tolist())
    assert ends[:2] == ends[2:]
    assert ends[0] != ends[1]


def test_it_changes_no_run_id_and_refuses_random_weights(model_folder):
    folder = model_folder("llama")
    assert len({run_id(Run(model=local(folder, stream))) for stream in (None, True, False)}) == 1
    run = Run(
        model=Model(name="m", weights="random", architecture={"model_type": "llama"}, stream=True)
    )
    assert [fault.split(":")[0] for fault in faults(run)] == ["model.stream=true"]


def test_weights_that_do_not_fit_are_streamed_unless_told_otherwise(model_folder, monkeypatch):
    folder = model_folder("llama")
    needed = dims.decoder_shape(local(folder, None)).parameters * 4
    for room, expected in ((needed / 0.9, True), (needed / 0.7, False), (None, False)):
        monkeypatch.setattr(dims, "_device_memory", lambda kind, room=room: room)
        assert dims.is_streamed(local(folder, None)) is expected
        assert dims.is_streamed(local(folder, False)) is False
        assert dims.is_streamed(local(folder, True)) is True


@pytest.mark.parametrize("stream", [True, False])
def test_files_that_lack_a_tensor_or_have_it_in_another_shape(model_folder, tmp_path, stream):
    """Found when the model is loaded, whole or not: transformers would draw such weights at random."""
    from safetensors.torch import load_file, save_file

    for file in model_folder("llama").glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(model_folder("llama") / "model.safetensors")
    lost = weights.pop("model.layers.0.mlp.up_proj.weight")
    for others in ({}, {"model.layers.0.mlp.up_proj.weight": lost[:, :-1].contiguous()}):
        save_file(weights | others, tmp_path / "model.safetensors")
        with pytest.raises(
            UserError, match=r"^model\..*model\.layers\.0\.mlp\.up_proj\.weight"
        ) as caught:
            load_model(local(tmp_path, stream))
        assert "\n" not in str(caught.value)


def test_names_without_the_decoders_prefix_and_several_files(model_folder, tmp_path):
    """GPT-2's own files say h.0 where the model says transformer.h.0."""
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((model_folder("gpt2") / "config.json").read_bytes())
    weights = load_file(model_folder("gpt2") / "model.safetensors")
    names, where = (
        {name.removeprefix("transformer."): tensor for name, tensor in weights.items()},
        {},
    )
    for i, part in enumerate((sorted(names)[::2], sorted(names)[1::2])):
        where |= dict.fromkeys(part, f"part-{i}.safetensors")
        save_file({name: names[name] for name in part}, tmp_path / f"part-{i}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    streamed, whole = (
        load_model(local(tmp_path, True)),
        load_model(local(model_folder("gpt2"), False)),
    )
    assert streamed.weights_hash() == whole.weights_hash()


MEASURE = """
import json, sys
import torch
torch.set_num_threads(1)
from pml_cli.config import MlpBlockAdapter, Model, Run, Train
from pml_cli.data.sources.random import RandomData
from pml_cli.training.trainer import Cell, Trainer
from pml_cli.model.loading import load_model
from pml_cli.launch.packing import Pack, check
from pml_cli.launch import cost_model

def resident(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def train(model, seqlen):
    planned = check([Run(r, seqlen, model=model, train=Train(steps=2)) for r in (2, 4)])
    Trainer(load_model(model), [Cell(run=c.run, samples=c.samples) for c in planned]).train()
    return cost_model.memory(Pack(planned))

path, stream, seqlen = sys.argv[1], sys.argv[2] == "stream", int(sys.argv[3])
train(Model(device="cpu"), 8)  # whatever is imported or set up at the first use
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
priced = train(Model(name="m", path=path, device="cpu", stream=stream), seqlen)
print(json.dumps({"measured": resident("VmHWM") - before, "priced": priced}))
"""


@pytest.fixture(scope="module")
def mid_size(tmp_path_factory):
    """12 layers and separate embeddings, 170 MB in float32."""
    import transformers

    sizes = {
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 12,
    }
    sizes |= {
        "intermediate_size": 1408,
        "vocab_size": 8192,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    folder = tmp_path_factory.mktemp("mid")
    transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("llama", **sizes)
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here"
)
@pytest.mark.parametrize("seqlen", [64, 700])
def test_measured_memory_is_the_priced_one(mid_size, seqlen):
    """Resident memory of a process of its own, within 15 % of the price, streamed and whole."""
    told = {}
    for way in ("stream", "whole"):
        # freed blocks go back to the system at once, so that what is resident is what is in use
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
        }
        words = [sys.executable, "-c", MEASURE, str(mid_size), way, str(seqlen)]
        answer = subprocess.run(words, env=env, check=True, capture_output=True, text=True).stdout
        told[way] = json.loads(answer.splitlines()[-1])
    assert told["stream"]["measured"] == pytest.approx(told["stream"]["priced"], rel=0.15)
    assert told["stream"]["measured"] < 0.75 * told["whole"]["measured"]
