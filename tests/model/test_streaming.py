"""Streamed models: the same numbers with less memory, and as much of it as the cost model says."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.families import FAMILIES
from support.models import adapter_of, local, own_logits, random_bank, random_ids
from torch import nn
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pml_cli.config.schema import Model, Run, Train
from pml_cli.config.setting import faults
from pml_cli.data.sources.random import RandomData
from pml_cli.errors import UserError
from pml_cli.launch.packing import check
from pml_cli.model import device, dims
from pml_cli.model.families import FAMILIES as FAMILY_RECORDS
from pml_cli.model.loading import load_model
from pml_cli.results.run_id import run_id
from pml_cli.training.trainer import Cell, Trainer


class ScaledNorm(LlamaRMSNorm):
    """With a buffer that is saved with the weights, as the biases of some routers are."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = nn.Buffer(torch.ones(1))

    def forward(self, hidden_states):
        return self.scale * super().forward(hidden_states)


def layers_in_memory(model):
    """Indices of the decoder layers of which some parameters have data."""
    indices = set()
    for index, layer in enumerate(model.layers):
        if not all(parameter.is_meta for parameter in layer.parameters()):
            indices.add(index)
    return indices


def passes(model, kind, family):
    """Prefix, split pass and full pass, in batches of two rows."""
    bank = random_bank(model, adapter_of(kind, family))
    model.check_split(bank)
    ids = random_ids(model, 3)
    prefix = model.prefix(ids, bank, rows=2)
    with torch.no_grad():
        upper = model.upper(prefix.rows(torch.tensor([0, 2]), 9), bank)
    return prefix.entry, upper, own_logits(model, ids[:2], bank)


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_equals_whole(model_folder, family, kind):
    """To the last bit; afterwards only the layers that training needs are in memory."""
    whole = load_model(local(model_folder(family), stream=False))
    streamed = load_model(local(model_folder(family), stream=True))
    expected = passes(whole, kind, family)
    for tensor, expected_tensor in zip(passes(streamed, kind, family), expected, strict=True):
        assert torch.equal(tensor, expected_tensor)

    # Of the adapter's layer, a block adapter needs only the norm that follows the MLP.
    needs_own_layer = kind == "linear" or bool(FAMILY_RECORDS[family].post_mlp_norms)
    needed = {1, 2} if needs_own_layer else {2}
    assert layers_in_memory(streamed) == needed
    assert streamed.weights_hash() == whole.weights_hash()


def final_nlls(model):
    """Of two trainings on different layers, so that what is in memory changes in between."""
    nlls = []
    for kind in ("linear", "mlp_block"):
        run = Run(
            rank=3,
            seqlen=20,
            model=model.settings,
            adapter=adapter_of(kind, "qwen3"),
            data=RandomData(),
            train=Train(steps=6),
        )
        (planned,) = check([run])
        cell = Cell(run=run, samples=planned.samples)
        Trainer(model, [cell]).train()
        nlls.append(cell.final.nll.tolist())
    return nlls


def test_training_is_the_same_to_the_last_bit(model_folder):
    whole = final_nlls(load_model(local(model_folder("qwen3"), stream=False)))
    streamed = final_nlls(load_model(local(model_folder("qwen3"), stream=True)))
    assert streamed == whole
    assert whole[0] != whole[1]


def test_streaming_changes_no_run_id_and_refuses_random_weights(model_folder):
    folder = model_folder("llama")
    runs = [Run(model=local(folder, stream=stream)) for stream in (None, True, False)]
    assert len({run_id(run) for run in runs}) == 1

    architecture = {"model_type": "llama"}
    model = Model(name="m", weights="random", architecture=architecture, stream=True)
    (fault,) = faults(Run(model=model))
    assert fault.startswith("model.stream=true:")


@pytest.mark.parametrize(("spare", "expected"), [(-1, True), (0, False), (None, False)])
def test_weights_that_do_not_fit_are_streamed_by_default(model_folder, spare, expected):
    folder = model_folder("llama")
    weights = dims.decoder_shape(local(folder)).parameters * 4
    memory = None if spare is None else weights + spare
    assert dims.is_streamed(local(folder), memory) is expected
    assert dims.is_streamed(local(folder, stream=False), memory) is False
    assert dims.is_streamed(local(folder, stream=True), memory) is True


@pytest.mark.parametrize(("share_of_memory", "expected"), [(0.9, True), (0.7, False)])
def test_without_a_plan_the_whole_device_decides(
    model_folder, monkeypatch, share_of_memory, expected
):
    folder = model_folder("llama")
    weights = dims.decoder_shape(local(folder)).parameters * 4
    monkeypatch.setattr(device, "_machine_memory", lambda: int(weights / share_of_memory))
    assert (load_model(local(folder)).stream is not None) is expected


@pytest.mark.parametrize("fault", ["missing", "another shape"])
@pytest.mark.parametrize("stream", [True, False])
def test_files_that_lack_a_tensor_are_refused(model_folder, tmp_path, stream, fault):
    """When the model is loaded: transformers would draw such weights at random."""
    for file in model_folder("llama").glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(model_folder("llama") / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = weights.pop(name)
    if fault == "another shape":
        weights[name] = tensor[:, :-1].contiguous()
    save_file(weights, tmp_path / "model.safetensors")

    with pytest.raises(UserError, match=rf"^model\..*{name}") as caught:
        load_model(local(tmp_path, stream=stream))
    assert "\n" not in str(caught.value)


def test_names_without_the_decoders_prefix_and_several_files(model_folder, tmp_path):
    """GPT-2's own files say h.0 where the model says transformer.h.0."""
    folder = model_folder("gpt2")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = load_file(folder / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}

    names = sorted(renamed)
    weight_map = {}
    for file, shard in (("0.safetensors", names[::2]), ("1.safetensors", names[1::2])):
        save_file({name: renamed[name] for name in shard}, tmp_path / file)
        weight_map |= dict.fromkeys(shard, file)
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "model.safetensors.index.json").write_text(index)

    streamed = load_model(local(tmp_path, stream=True))
    whole = load_model(local(folder, stream=False))
    assert streamed.weights_hash() == whole.weights_hash()


# Prints the measured and the estimated peak of a training, in a process of its own.
MEASURE = """
import json
import sys

import torch

torch.set_num_threads(1)
from pml_cli.config.schema import Model, Run, Train
from pml_cli.launch import cost_model
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import check
from pml_cli.model.loading import load_model
from pml_cli.training.trainer import Cell, Trainer


def resident(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024


def train(model, seqlen):
    runs = [Run(rank=rank, seqlen=seqlen, model=model, train=Train(steps=2)) for rank in (2, 4)]
    planned = check(runs)
    cells = [Cell(run=cell.run, samples=cell.samples) for cell in planned]
    Trainer(load_model(model), cells).train()
    return cost_model.peak_memory(Pack(cells=planned))


path, stream, seqlen = sys.argv[1], sys.argv[2] == "stream", int(sys.argv[3])
# Whatever is imported or set up at the first use does not count.
train(Model(device="cpu"), 8)
start = resident("VmRSS")
# Resets the peak.
open("/proc/self/clear_refs", "w").write("5")
estimate = train(Model(name="m", path=path, device="cpu", stream=stream), seqlen)
print(json.dumps({"measured": resident("VmHWM") - start, "estimate": estimate}))
"""


@pytest.fixture(scope="module")
def mid_size(tmp_path_factory):
    """A model of 12 layers with separate embeddings, 170 MB in float32."""
    import transformers

    config = transformers.AutoConfig.for_model(
        "llama",
        hidden_size=512,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_hidden_layers=12,
        intermediate_size=1408,
        vocab_size=8192,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("mid")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def peak_memory(folder, mode, seqlen):
    # Freed blocks return to the system at once, so that resident memory is memory in use.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-c", MEASURE, str(folder), mode, str(seqlen)]
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here"
)
@pytest.mark.parametrize("seqlen", [64, 700])
def test_measured_memory_is_the_estimate(mid_size, seqlen):
    """Resident memory within 15 % of the estimate, and well below that of the whole model."""
    streamed = peak_memory(mid_size, "stream", seqlen)
    whole = peak_memory(mid_size, "whole", seqlen)
    assert streamed["measured"] == pytest.approx(streamed["estimate"], rel=0.15)
    assert streamed["measured"] < 0.75 * whole["measured"]


def test_buffers_that_are_saved_with_the_weights_are_read(model_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", ScaledNorm)
    config = transformers.AutoConfig.from_pretrained(model_folder("llama"))
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, buffer in model.named_buffers():
        if name.endswith("scale"):
            buffer.fill_(1.5)
    model.save_pretrained(tmp_path / "scaled")

    whole, streamed = (load_model(local(tmp_path / "scaled", stream=s)) for s in (False, True))
    assert float(streamed.norm.scale) == float(streamed.layers[0].input_layernorm.scale) == 1.5
    expected = passes(whole, "linear", "llama")
    for tensor, expected_tensor in zip(passes(streamed, "linear", "llama"), expected, strict=True):
        assert torch.equal(tensor, expected_tensor)

    path = tmp_path / "scaled/model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.scale"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"have no model\.norm\.scale as the model has it"):
        load_model(local(tmp_path / "scaled", stream=True))
