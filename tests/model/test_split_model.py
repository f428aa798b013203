"""The split forward pass against the model's own, family by family; where adapters go; what cannot be loaded."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.families import FAMILIES
from support.models import T, adapter_of, local, own_logits, random_bank, random_ids

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model
from pml_cli.errors import UserError
from pml_cli.model import families
from pml_cli.model.device import pick_device
from pml_cli.model.loading import load_model
from pml_cli.model.verify_split import split_matches_full
from pml_cli.model.weight_hash import CHUNK, tensor_checksums

WIDE = {"n_embd": 64, "n_head": 4, "n_layer": 1, "n_positions": 32, "vocab_size": 32000}


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_split_equals_full(model_folder, family, kind):
    base = load_model(local(model_folder(family)))
    bank = random_bank(base, adapter_of(kind, family))
    base.check_split(bank)
    unique = random_ids(base, 3)
    rows = torch.tensor(
        [0, 2, 1, 1]
    )  # two rows for each of the two adapters, from a cache of three
    expected = own_logits(base, unique[rows], bank)
    scale = expected.abs().max()
    assert (
        expected - base.model(input_ids=unique[rows]).logits
    ).abs().max() > 0.03 * scale  # the adapters are felt
    prefix = base.prefix(unique, bank, rows=2)
    with torch.no_grad():
        split = base.logits(base.upper(prefix.rows(rows, T), bank))
        full = base.logits(base.full(unique[rows], bank).last_hidden_state)
    assert (split - expected).abs().max() <= 3e-5 * scale
    assert (full - expected).abs().max() <= 3e-5 * scale


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shorter_prefixes_of_a_longer_cache(model_folder, family, kind):
    base = load_model(local(model_folder(family)))
    bank = random_bank(base, adapter_of(kind, family))
    ids = random_ids(base, 2)
    prefix = base.prefix(ids, bank)
    for tokens in (1, 6, 7, 8, 20):  # around the sliding window of 7
        expected = own_logits(base, ids[:, :tokens], bank)
        with torch.no_grad():
            split = base.logits(base.upper(prefix.rows(torch.tensor([0, 1]), tokens), bank))
        assert (split - expected).abs().max() <= 3e-5 * expected.abs().max()


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt2"])
def test_gradients_of_the_split_pass_are_those_of_the_full_one(model_folder, family):
    base = load_model(local(model_folder(family)))
    ids, found = random_ids(base, 2), []
    for kind in ("mlp_block", "linear"):
        bank = random_bank(base, adapter_of(kind, family)).requires_grad_()
        hidden = base.upper(base.prefix(ids, bank).rows(torch.tensor([0, 1]), T), bank)
        split = torch.autograd.grad(hidden.square().sum(), bank.parameters())
        full = torch.autograd.grad(
            base.full(ids, bank).last_hidden_state.square().sum(), bank.parameters()
        )
        found += [
            (a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-5
            for a, b in zip(split, full, strict=True)
        ]
    assert all(found)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("kind", [MlpBlockAdapter(), LinearAdapter(targets=["q_proj", "up_proj"])])
def test_the_first_and_the_last_layer(model_folder, layer, kind):
    base = load_model(local(model_folder("qwen3"), layer=layer))
    bank, ids = random_bank(base, kind), random_ids(base, 2)
    assert all(f"layers.{layer}." in name for name in bank.sites)
    expected = own_logits(base, ids, bank)
    with torch.no_grad():
        split = base.logits(base.upper(base.prefix(ids, bank).rows(torch.tensor([0, 1]), T), bank))
    assert (split - expected).abs().max() <= 3e-5 * expected.abs().max()


def test_every_layer_and_unsorted_layers(model_folder):
    base = load_model(local(model_folder("llama")))
    every = base.sites(LinearAdapter(targets=["q_proj"], layers=[]))
    assert [s.name for s in every] == [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
    chosen = base.sites(LinearAdapter(targets=["q_proj"], layers=[2, 0, 2]))
    assert [s.name for s in chosen] == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 2)]
    (k_proj,) = base.sites(LinearAdapter(targets=["k_proj"]))
    assert (k_proj.inputs, k_proj.outputs, k_proj.transposed) == (32, 16, False)


def test_sites_of_gpt2_know_that_weights_are_stored_the_other_way(model_folder):
    base = load_model(local(model_folder("gpt2")))
    (fc,) = base.sites(LinearAdapter(targets=["c_fc"]))
    assert (fc.inputs, fc.outputs, fc.transposed) == (32, 128, True)
    assert len(base.sites(LinearAdapter(targets=["c_proj"]))) == 2  # of attention and of the MLP
    (one,) = base.sites(LinearAdapter(targets=["mlp.c_proj"]))
    assert one.inputs == 128


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (LinearAdapter(targets=["q_prj"]), "adapter.targets=q_prj: did you mean 'q_proj'?"),
        (LinearAdapter(targets=["q_proj"], layers=[3]), "layers 0 to 2"),
        (LinearAdapter(targets=["q_proj"], layers=[-1]), "layers 0 to 2"),
        (LinearAdapter(targets=["input_layernorm"]), "allowed:"),
    ],
)
def test_places_that_do_not_exist(model_folder, adapter, message):
    with pytest.raises(UserError, match="adapter") as caught:
        load_model(local(model_folder("qwen3"))).sites(adapter)
    assert message in str(caught.value)


def test_a_model_whose_split_pass_is_not_its_own_is_refused(model_folder):
    """A head that does more than its weight, bias and cap say."""
    base = load_model(local(model_folder("llama")))
    base.model.lm_head.register_forward_hook(lambda _m, _i, out: out * 1.1)
    with pytest.raises(UserError, match="differs from the full one"):
        base.check_split(random_bank(base, MlpBlockAdapter()))


def grown(base, factor):
    """The base with larger matrices: what rounding does to the logits grows beside what an adapter does."""
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.mul_(factor if parameter.dim() > 1 else 1)
    return base


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", [*FAMILIES, "glm4"])
def test_a_right_split_is_accepted_in_every_type(model_folder, family, dtype):
    """With every draw of the probe: a wrong refusal would lock a user out."""
    for factor in (0.3, 1, 4):
        base = grown(load_model(local(model_folder(family), dtype=dtype)), factor)
        for kind in ("mlp_block", "linear"):
            bank = random_bank(base, adapter_of(kind, family))
            assert all(split_matches_full(base, bank, seed) for seed in range(3))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wrong", ["granite", "glm4"])
def test_a_wrong_split_is_refused_in_every_type(model_folder, monkeypatch, wrong, dtype):
    """Granite scales what an MLP adds; GLM-4 norms it, which is overlooked here. Linear adapters know neither."""
    overlooked = replace(families.GENERIC, post_mlp_norms=("post_feedforward_layernorm",))
    monkeypatch.setattr(families, "GENERIC", overlooked)
    for factor in (0.3, 1, 4, 8):
        base = grown(load_model(local(model_folder(wrong), dtype=dtype)), factor)
        base.check_split(random_bank(base, LinearAdapter(targets=["q_proj"], layers=[1])))
        bank = random_bank(base, MlpBlockAdapter())
        assert not any(split_matches_full(base, bank, seed) for seed in range(3))
        with pytest.raises(UserError, match="model=local: its split forward pass differs"):
            base.check_split(bank)


def test_glm4_in_float64(model_folder):
    """Its MLP's output is normed before it is added."""
    base = load_model(local(model_folder("glm4"), dtype="float64"))
    bank, ids = random_bank(base, MlpBlockAdapter()), random_ids(base, 2)
    expected = own_logits(base, ids, bank)
    with torch.no_grad():
        split = base.logits(base.upper(base.prefix(ids, bank), bank))
    assert (
        split - expected
    ).abs().max() <= 1e-6 * expected.abs().max()  # the norms compute in float32


def test_the_adapter_layer_is_at_two_thirds_of_the_depth(model_folder, tiny_base):
    assert load_model(local(model_folder("gpt2"), layer=None)).layer == 2
    assert tiny_base.layer == 4  # of six


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-6), ("bfloat16", 0.08), ("float16", 0.02)]
)
def test_other_dtypes(model_folder, dtype, tolerance):
    base = load_model(local(model_folder("llama"), dtype=dtype))
    assert base.dtype == getattr(torch, dtype)
    bank, ids = random_bank(base, MlpBlockAdapter()), random_ids(base, 2)
    base.check_split(bank)
    expected = own_logits(base, ids, bank).double()
    with torch.no_grad():
        split = base.logits(base.upper(base.prefix(ids, bank), bank)).double()
    assert (split - expected).abs().max() <= tolerance * expected.abs().max()
    assert bank.A[next(iter(bank.A))].dtype == (
        torch.float64 if dtype == "float64" else torch.float32
    )


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    settings = Model(
        name="random",
        weights="random",
        architecture={"model_type": "gpt2", **FAMILIES["gpt2"]},
        device="cpu",
    )
    state = torch.random.get_rng_state()
    one, two = load_model(settings), load_model(settings)
    assert one.weights_hash() == two.weights_hash()
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_weights_hash_tells_models_apart(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("gpt2"), tmp_path / "copy")
    assert (
        load_model(local(folder)).weights_hash()
        == load_model(local(model_folder("gpt2"))).weights_hash()
    )
    changed = load_model(local(folder))
    with torch.no_grad():
        changed.head.weight_VD[0, 0] += 1
    assert changed.weights_hash() != load_model(local(folder)).weights_hash()


def test_the_weights_hash_is_exact(tmp_path):
    """The same with any number of threads, in a tensor whose double sum is not; two weights swapped or one bit are seen."""
    settings = Model(
        name="wide", weights="random", architecture={"model_type": "gpt2", **WIDE}, device="cpu"
    )
    base, found, before = load_model(settings), set(), torch.get_num_threads()
    weights = base.head.weight_VD
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.add(base.weights_hash())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1
    with torch.no_grad():
        weights[[3, 4000]] = weights[[4000, 3]]
        found.add(base.weights_hash())
        weights[[3, 4000]] = weights[[4000, 3]]
        assert base.weights_hash() in found
        weights[7, 7] = torch.nextafter(weights[7, 7], torch.tensor(9.0))
        found.add(base.weights_hash())
    assert len(found) == 3


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.bool, torch.uint8]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 70001)])
def test_sums_of_bits(dtype, shape):
    """As plain integers give them; wherever in memory the tensor lies, and however its words are shared out."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(9).to(dtype)
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    words = np.frombuffer(raw + bytes(-len(raw) % 4), "<i4")
    keys = np.frombuffer(hashlib.shake_256(b"pml").digest(8 * CHUNK), "<i8") | 1
    parts = [words[i : i + CHUNK] for i in range(0, len(words) // CHUNK * CHUNK + 1, CHUNK)]
    expected = [
        sum(int(w) * int(k) for w, k in zip(part, keys, strict=False)) % 2**64 for part in parts
    ]
    elsewhere = torch.cat([tensor.reshape(-1)[:1], tensor.reshape(-1)])[
        len(tensor.reshape(-1)[:1]) :
    ].view(shape)
    for one in (tensor, elsewhere, tensor.T.contiguous().T if tensor.dim() == 2 else tensor):
        assert [int(s) % 2**64 for s in tensor_checksums(one)] == expected


def test_a_folder_without_safetensors_is_refused(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("gpt2"), tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.path=") as caught:
        load_model(local(folder))
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_broken_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama",')
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(local(tmp_path))


def test_damaged_weights_are_refused(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("gpt2"), tmp_path / "damaged")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.path="):
        load_model(local(folder))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_is_in_no_file_is_refused_unless_it_is_the_embeddings(
    tmp_path, family, tied, stream
):
    """The files of a bare decoder; an untied head of its own would be drawn anew with every load."""
    import transformers

    config = transformers.AutoConfig.for_model(family, **FAMILIES[family], tie_word_embeddings=tied)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "whole")
    model.base_model.save_pretrained(tmp_path / "bare")
    whole = load_model(local(tmp_path / "whole", stream=stream))
    if tied:
        assert (
            load_model(local(tmp_path / "bare", stream=stream)).weights_hash()
            == whole.weights_hash()
        )
        return
    with pytest.raises(UserError, match=r"^model\..* have no lm_head\.weight") as caught:
        load_model(local(tmp_path / "bare", stream=stream))
    assert "\n" not in str(caught.value)


def test_several_missing_weights_are_counted(model_folder, tmp_path):
    shutil.copytree(model_folder("llama"), tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper" / "config.json").read_text())
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(
        UserError,
        match=r"its weights have no model\.layers\.3\.input_layernorm\.weight, .* and 6 more$",
    ):
        load_model(local(tmp_path / "deeper"))


def test_a_model_type_nobody_knows(tmp_path, model_folder):
    config = json.loads((model_folder("gpt2") / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"model_type": "gpt99", "architectures": ["Gpt99"]})
    )
    with pytest.raises(UserError, match=r"model\.path=") as caught:
        load_model(local(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": 30},
        {"model_type": "gpt99"},
        {"num_key_value_heads": "two"},
        {"hidden_act": "nope"},
    ],
)
def test_an_architecture_that_cannot_be_is_one_line(wrong):
    fields = {"model_type": "llama", **FAMILIES["llama"], **wrong}
    with pytest.raises(UserError, match=r"model\.architecture") as caught:
        load_model(Model(name="odd", weights="random", architecture=fields, layer=1, device="cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda", "warp:9"])
def test_devices_that_are_not_here(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(UserError, match=f"model.device={device}"):
        load_model(Model(device=device))


def test_a_cuda_device_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1").index == 1
    with pytest.raises(
        UserError, match=r"model\.device=cuda:2: the last CUDA device here is cuda:1"
    ):
        pick_device("cuda:2")
