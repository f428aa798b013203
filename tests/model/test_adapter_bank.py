"""Our adapters against PEFT: what we save it loads, and one step of training gives the same weights."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional as F

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model, Run, Train
from pml_cli.data.source import Sample
from pml_cli.data.sources.random import RandomData
from pml_cli.errors import UserError
from pml_cli.model.adapter_bank import AdapterBank, Dropout, Site, stack
from pml_cli.model.loading import load_model
from pml_cli.peft_block import MlpBlockLora, load_mlp_block, mlp_block_config
from pml_cli.training.trainer import Cell, train_pack

LINEAR = {
    "qwen3": LinearAdapter(targets=["q_proj", "v_proj", "down_proj"], layers=[1, 2], alpha=12.0),
    "gpt2": LinearAdapter(targets=["c_attn", "c_fc"], layers=[0, 2], alpha=6.0),
}
SAMPLES = [
    Sample((5, 9), (11, 3, 77, 50, 8)),
    Sample((5,), (2, 99, 41)),
    Sample((7, 7, 7), (60, 61, 62, 63)),
]


def settings(folder, **more):
    return Model(name="small", path=str(folder), layer=1, **({"device": "cpu"} | more))


def loud_bank(base, adapter, ranks=(4, 2)):
    bank = AdapterBank.initial(
        base.sites(adapter), adapter, ranks=ranks, seeds=range(len(ranks)), dtype=base.adapter_dtype
    )
    g = torch.Generator().manual_seed(1)
    for name, B in bank.B.items():
        B.copy_(torch.randn(B.shape, generator=g, dtype=B.dtype))
        for k, rank in enumerate(ranks):
            bank.B[name][k, rank:] = 0
    return bank


def own_logits(base, ids, bank, k):
    with torch.no_grad():
        return base.logits(base.full(ids, bank.select([k])).last_hidden_state)


def plain(folder, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def some_ids():
    return torch.randint(1, 101, (2, 17), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", LINEAR)
def test_peft_loads_what_we_save(model_folder, tmp_path, family):
    base = load_model(settings(model_folder(family)))
    bank = loud_bank(base, LINEAR[family])
    for k, rank in enumerate((4, 2)):
        folder = tmp_path / str(k)
        folder.mkdir()
        bank.save(k, folder, str(model_folder(family)))
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank
        theirs = peft.PeftModel.from_pretrained(plain(model_folder(family)), str(folder))
        ours = own_logits(base, some_ids(), bank, k)
        with torch.no_grad():
            torch.testing.assert_close(theirs(some_ids()).logits, ours, rtol=1e-4, atol=1e-4)
            assert (plain(model_folder(family))(some_ids()).logits - ours).abs().max() > 0.1
            merged = theirs.merge_and_unload()(some_ids()).logits
        torch.testing.assert_close(merged, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gpt_neox", "gemma2"])
def test_peft_loads_a_block_adapter_through_our_layer(model_folder, tmp_path, family):
    base = load_model(settings(model_folder(family)))
    bank = loud_bank(base, MlpBlockAdapter())
    bank.save(1, tmp_path, str(model_folder(family)))
    theirs = load_mlp_block(plain(model_folder(family)), tmp_path)
    assert not any(p.requires_grad for p in theirs.parameters())
    ours = own_logits(base, some_ids(), bank, 1)
    with torch.no_grad():
        torch.testing.assert_close(theirs(some_ids()).logits, ours, rtol=1e-4, atol=1e-4)
        with theirs.disable_adapter():
            bare = theirs(some_ids()).logits
    torch.testing.assert_close(bare, plain(model_folder(family))(some_ids()).logits.detach())
    assert (bare - ours).abs().max() > 0.1 * ours.abs().max()


def test_a_block_adapter_cannot_be_merged_but_unloaded_and_saved_again(model_folder, tmp_path):
    base = load_model(settings(model_folder("qwen3")))
    bank = loud_bank(base, MlpBlockAdapter())
    (tmp_path / "ours").mkdir()
    bank.save(0, tmp_path / "ours", "x")
    theirs = load_mlp_block(plain(model_folder("qwen3")), tmp_path / "ours")
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        theirs.merge_and_unload()
    theirs = load_mlp_block(plain(model_folder("qwen3")), tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    ours, again = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs")
    )
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    bare = theirs.unload()
    torch.testing.assert_close(
        bare(some_ids()).logits, plain(model_folder("qwen3"))(some_ids()).logits
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_block_adapter_on_bases_of_other_types(model_folder, tmp_path, dtype):
    name = str(dtype).removeprefix("torch.")
    base = load_model(settings(model_folder("llama"), dtype=name))
    bank = loud_bank(base, MlpBlockAdapter())
    bank.save(0, tmp_path, "x")
    theirs = load_mlp_block(plain(model_folder("llama"), dtype), tmp_path)
    ours = own_logits(base, some_ids(), bank, 0)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-6
    with torch.no_grad():
        assert (theirs(some_ids()).logits - ours).abs().max() <= tolerance * ours.abs().max()


def test_load_mlp_block_refuses_what_is_not_one(model_folder, tmp_path):
    with pytest.raises(UserError, match="adapter_config"):
        load_mlp_block(plain(model_folder("qwen3")), tmp_path)
    base = load_model(settings(model_folder("qwen3")))
    loud_bank(base, LINEAR["qwen3"]).save(0, tmp_path, "x")
    with pytest.raises(UserError, match="PeftModel"):
        load_mlp_block(plain(model_folder("qwen3")), tmp_path)
    loud_bank(base, MlpBlockAdapter()).save(0, tmp_path, "x")
    with pytest.raises(UserError, match="no module"):
        load_mlp_block(plain(model_folder("gpt2")), tmp_path)
    with pytest.raises(UserError, match="layer=3"):
        mlp_block_config(plain(model_folder("qwen3")), 2, 3)


def test_two_block_adapters_on_one_model(model_folder, tmp_path):
    base = load_model(settings(model_folder("qwen3")))
    bank = loud_bank(base, MlpBlockAdapter())
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        bank.save(k, tmp_path / str(k), "x")
    theirs = load_mlp_block(plain(model_folder("qwen3")), tmp_path / "0")
    theirs.load_adapter(str(tmp_path / "1"), "second")
    for name, k in (("second", 1), ("default", 0)):
        theirs.set_adapter(name)
        with torch.no_grad():
            torch.testing.assert_close(
                theirs(some_ids()).logits,
                own_logits(base, some_ids(), bank, k),
                rtol=1e-4,
                atol=1e-4,
            )


def peft_model(folder, adapter, rank, dtype):
    model = plain(folder, dtype)
    if isinstance(adapter, MlpBlockAdapter):
        return peft.get_peft_model(model, mlp_block_config(model, rank, 1))
    names = [s.name for s in load_model(settings(folder)).sites(adapter)]
    config = peft.LoraConfig(
        r=rank, lora_alpha=adapter.alpha, target_modules=names, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def peft_weights(model):
    state = peft.get_peft_model_state_dict(model)
    return {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}


def peft_step(model, optimizer):
    """One plain PyTorch step on SAMPLES: the mean nll over all target tokens, clipped at 1."""
    losses = []
    for sample in SAMPLES:
        ids = torch.tensor([[*sample.prompt, *sample.target]])
        logits = model(ids[:, :-1]).logits[0, len(sample.prompt) - 1 :]
        losses.append(F.cross_entropy(logits, torch.tensor(sample.target), reduction="none"))
    optimizer.zero_grad()
    torch.cat(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()


@pytest.mark.parametrize(
    ("family", "kind"),
    [("qwen3", "linear"), ("gpt2", "linear"), ("qwen3", "block"), ("gpt2", "block")],
)
def test_training_is_that_of_peft_and_torch(model_folder, family, kind):
    """Three steps; float64, so that what differs is not rounding (Qwen3's norms round to float32 all the same)."""
    adapter, rank, steps = LINEAR[family] if kind == "linear" else MlpBlockAdapter(), 3, 3
    base = load_model(settings(model_folder(family), dtype="float64"))
    theirs = peft_model(model_folder(family), adapter, rank, torch.float64)
    start = AdapterBank.initial(
        base.sites(adapter), adapter, ranks=[rank], seeds=[7], dtype=torch.float64
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad and "lora_A" in name:
                site = name.removeprefix("base_model.model.").split(".lora_A")[0]
                assert parameter.dtype == torch.float64
                parameter.copy_(start.A[site][0].T)
    train = Train(steps=steps, lr=1e-2, schedule="constant", weight_decay=0.1, clip=1.0)
    cell = Cell(
        run=Run(
            rank=rank,
            seqlen=12,
            seed=7,
            model=base.settings,
            data=RandomData(),
            adapter=adapter,
            train=train,
        ),
        samples=SAMPLES,
    )
    train_pack(base, [cell])
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        peft_step(theirs, optimizer)
    found = peft_weights(theirs)
    assert sum(p.numel() for p in trainable) == cell.adapter.parameter_count(0)
    tolerance = (
        1e-4 if family == "qwen3" else 1e-7
    )  # AdamW divides by tiny gradients: rounding shows
    for site in start.sites:
        torch.testing.assert_close(
            cell.adapter.A[site][0].T, found[f"{site}.lora_A.weight"], rtol=0, atol=tolerance
        )
        torch.testing.assert_close(
            cell.adapter.B[site][0].T, found[f"{site}.lora_B.weight"], rtol=0, atol=tolerance
        )
        assert cell.adapter.B[site].abs().max() > 0.01
        assert (cell.adapter.A[site] - start.A[site]).abs().max() > 1e-3


def test_block_dropout_in_peft_falls_on_the_output_and_only_in_training(model_folder):
    model = plain(model_folder("qwen3"))
    theirs = peft.get_peft_model(model, mlp_block_config(model, 2, 1, dropout=0.5))
    layer = next(m for m in theirs.modules() if isinstance(m, MlpBlockLora))
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(1, 40, 32)
    with torch.no_grad():
        theirs.eval()
        added = layer(x) - layer.base_layer(x)
        theirs.train()
        dropped = layer(x) - layer.base_layer(x)
    kept = dropped.abs() > 1e-6
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * added[kept], rtol=1e-3, atol=1e-4)


def test_block_scaling_in_peft_is_alpha_over_rank(model_folder):
    config = mlp_block_config(model := plain(model_folder("qwen3")), 2, 1)
    config.lora_alpha = 6
    layer = next(
        m for m in peft.get_peft_model(model, config).modules() if isinstance(m, MlpBlockLora)
    )
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(1, 5, 32)
    expected = 3 * x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    torch.testing.assert_close(layer(x) - layer.base_layer(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("adapter", [LINEAR["qwen3"], MlpBlockAdapter()])
def test_saved_equals_loaded(model_folder, tmp_path, adapter):
    base = load_model(settings(model_folder("qwen3")))
    bank = loud_bank(base, adapter, (2, 5))
    bank.save(0, tmp_path, "x")
    other = AdapterBank.initial(
        base.sites(adapter), adapter, ranks=[7, 2], seeds=[8, 9], dtype=torch.float32
    )
    before = {name: A[0].clone() for name, A in other.A.items()}
    other.load(1, tmp_path)
    for name in bank.sites:
        assert torch.equal(other.A[name][1, :, :2], bank.A[name][0, :, :2])
        assert torch.equal(other.B[name][1, :2], bank.B[name][0, :2])
        assert torch.equal(other.A[name][0], before[name])
    x = torch.randn(2, 6, next(iter(bank.sites.values())).inputs).repeat(2, 1, 1)
    name = next(iter(bank.sites))
    torch.testing.assert_close(other.delta(name, x)[2:], bank.delta(name, x)[:2])  # scale too


def test_delta_by_hand_and_hooks_come_off():
    site, kind = Site("m", 3, 2), LinearAdapter(targets=["m"], alpha=6.0)
    bank = AdapterBank.initial([site], kind, ranks=[1, 3], seeds=[0, 1], dtype=torch.float64)
    for k, rank in enumerate((1, 3)):
        bank.B["m"][k, :rank] = torch.randn(rank, 2, dtype=torch.float64)
    module, x = torch.nn.Linear(3, 2).double(), torch.randn(4, 5, 3, dtype=torch.float64)
    with bank.attached({"m": module}):
        with_adapter = module(x)
    for k, scale in ((0, 6.0), (1, 2.0)):  # alpha / rank
        rows = slice(2 * k, 2 * k + 2)
        expected = module(x[rows]) + scale * x[rows] @ bank.A["m"][k] @ bank.B["m"][k]
        torch.testing.assert_close(with_adapter[rows], expected)
    assert torch.equal(module(x), torch.nn.functional.linear(x, module.weight, module.bias))


def test_initial_weights_are_kaiming_and_belong_to_the_seed_alone():
    sites = [Site("a", 400, 10), Site("b", 50, 10)]
    bank = AdapterBank.initial(
        sites, MlpBlockAdapter(), ranks=[4, 8], seeds=[3, 4], dtype=torch.float32
    )
    alone = AdapterBank.initial(sites, MlpBlockAdapter(), ranks=[8], seeds=[4], dtype=torch.float32)
    for name, inputs in (("a", 400), ("b", 50)):
        assert torch.equal(bank.A[name][1], alone.A[name][0])
        assert not torch.equal(bank.A[name][0, :, :4], bank.A[name][1, :, :4])
        drawn = bank.A[name][1]
        assert 0.95 / inputs**0.5 < drawn.abs().max() <= 1 / inputs**0.5
        assert drawn.std().item() == pytest.approx(1 / (3 * inputs) ** 0.5, rel=0.1)
        assert bank.B[name].abs().max() == 0
    assert bank.parameter_count(0) == 4 * (410 + 60)


def test_stack_joins_banks_of_different_ranks(model_folder):
    base = load_model(settings(model_folder("qwen3")))
    one, two = loud_bank(base, LINEAR["qwen3"], (2,)), loud_bank(base, LINEAR["qwen3"], (7, 3))
    both = stack([one, two])
    assert both.ranks == [2, 7, 3]
    for k, (bank, place) in enumerate(((one, 0), (two, 0), (two, 1))):
        torch.testing.assert_close(
            own_logits(base, some_ids(), both, k), own_logits(base, some_ids(), bank, place)
        )


def test_dropout_keeps_the_mean_and_spares_the_padding():
    dropout = Dropout(0.25, [1, 2], [(2, 30), (3, 50)], torch.device("cpu"))
    x = torch.ones(2, 3 * 50, 64)
    out = dropout(x, (6, 50, 64)).view(2, 3, 50, 64)
    for part in (out[0, :2, :30], out[1]):
        assert set(part.unique().tolist()) <= {0.0, float(torch.tensor(4 / 3))}
        assert part.mean().item() == pytest.approx(1, abs=0.05)
    assert (out[0, 2] == 1).all()
    again = Dropout(0.25, [2], [(3, 50)], torch.device("cpu"))(x[1:], (3, 50, 64))
    assert torch.equal(again.view(3, 50, 64), out[1])
