"""loss.keep in transformers' Trainer, on PEFT's LoRA: against pml's own trainer."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from support.adapters import random_bank
from support.hf_training import adapters, trained
from support.marks import slow
from support.packs import train_packed
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from pml_cli.config.schema import TINY, LinearAdapter, Model, Run, Train
from pml_cli.data.generic_text import generic_windows
from pml_cli.data.opened import source_of
from pml_cli.data.python_docs import held_out_text
from pml_cli.data.sources.random import RandomData
from pml_cli.errors import UserError
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.loading import load_model
from pml_cli.training.hf_trainer import MemFTCallback, MemFTLoss
from pml_cli.training.keep import KeepPenalty
from pml_cli.training.keep_drop_in import LoraPenalty, keep_windows
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.sample_memory import IGNORED
from pml_cli.training.trainer import Cell

ADAPTER = LinearAdapter(targets=["q_proj", "down_proj"], layers=[2, 4], alpha=6.0)


@pytest.fixture(scope="module")
def float64_base():
    return load_model(Model(dtype="float64", device="cpu"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of a few windows."""
    path = tmp_path_factory.mktemp("generic") / "text.txt"
    path.write_text(held_out_text()[:6000], "utf-8")
    return str(path)


@pytest.fixture
def peft_model():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64)
    config = LoraConfig(r=8, target_modules=["q_proj"], lora_dropout=0.0)
    return get_peft_model(model, config).double()


def peft_of(bank, folder):
    """A model of PEFT with the first adapter of a bank."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64)
    bank.save(0, folder, str(TINY))
    return PeftModel.from_pretrained(model, folder, is_trainable=True).to(torch.float64)


def ids_of(windows):
    return torch.tensor([[*window.prompt, *window.target] for window in windows])


def weights_of(model):
    """A and B of each site, as a bank of one cell has them."""
    weights = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            site, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            weights[site, rest[0]] = parameter.T[None]
    return weights


@pytest.mark.slow
def test_energy_gradient_and_harm_are_those_of_pmls_trainer(float64_base, text, tmp_path):
    bank = random_bank(float64_base, ADAPTER, [3], scale=3)
    model = peft_of(bank, tmp_path)
    loss = SftLoss(keep=1.0, keep_text=text)
    run = Run(rank=3, loss=loss, adapter=ADAPTER, model=float64_base.settings)
    penalty = KeepPenalty(float64_base, bank, [run])
    grads = [torch.zeros_like(parameter) for parameter in bank.parameters()]
    penalty.add_gradient(bank, grads, 0, 1)

    drop_in = LoraPenalty(loss, model, ids_of(generic_windows(run)))
    drop_in.energy().backward()
    expected = dict(zip(bank.sites, zip(grads[:4], grads[4:], strict=True), strict=True))
    for (site, matrix), _ in weights_of(model).items():
        parameter = model.get_parameter(f"base_model.model.{site}.lora_{matrix}.default.weight")
        grad = expected[site]["AB".index(matrix)]
        torch.testing.assert_close(parameter.grad.T[None], grad, rtol=1e-6, atol=1e-12)
    assert drop_in.harm() == pytest.approx(penalty.harm(bank, 0), rel=1e-5)


@pytest.mark.parametrize("setting", [slow({"keep": 20.0}), {"keep_harm": 0.01}], ids=str)
def test_a_training_is_that_of_pmls_trainer(float64_base, text, tmp_path, setting):
    """Transformers' AdamW, clipping and schedule; the limit too, scaling at the end included."""
    steps = 24
    train = Train(steps=steps, lr=3e-2, log_every=steps)
    loss = SftLoss(**setting, keep_text=text)
    run = Run(
        rank=3, seqlen=16, loss=loss, adapter=ADAPTER, model=float64_base.settings, train=train
    )
    (sample,) = source_of(run).take(16)
    (cell,) = train_packed(float64_base, [Cell(run=run, samples=[sample])])

    sites = float64_base.sites(ADAPTER)
    bank = AdapterBank.initial(sites, ADAPTER, ranks=[3], seeds=[0], dtype=torch.float64)
    ids = [*sample.prompt, *sample.target]
    labels = [IGNORED] * len(sample.prompt) + list(sample.target)
    drop_in = MemFTLoss("sft", keep_ids=ids_of(generic_windows(run)), **setting)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=1,
        max_steps=steps,
        learning_rate=3e-2,
        max_grad_norm=1.0,
        seed=0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        peft_of(bank, tmp_path),
        arguments,
        train_dataset=[{"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}],
        compute_loss_func=drop_in,
        callbacks=[MemFTCallback(drop_in)],
    )
    trainer.train()

    for (site, matrix), weight in weights_of(trainer.model).items():
        expected = (cell.adapter.A if matrix == "A" else cell.adapter.B)[site]
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)
    weight, harm = drop_in.kept
    assert weight == pytest.approx(cell.keep, rel=1e-3)
    assert harm == pytest.approx(cell.keep_harm, rel=1e-3)
    if "keep_harm" in setting:
        assert harm <= 0.01 and weight != 22


def test_lora_inside_a_model_of_transformers(peft_model):
    """Put there without PEFT's wrapper."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64)
    model = inject_adapter_in_model(LoraConfig(r=8, target_modules=["q_proj"]), model).double()
    ids = keep_windows(SftLoss(keep=1.0), AutoTokenizer.from_pretrained(TINY))[:2, :40]

    energies, harms = [], []
    for penalised in (model, peft_model):
        penalty = LoraPenalty(SftLoss(keep=1.0), penalised, ids)
        for name, parameter in penalised.named_parameters():
            if "lora_" in name:
                assert parameter.requires_grad
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
        energies.append(penalty.energy().item())
        harms.append(penalty.harm())
    assert energies[0] == pytest.approx(energies[1])
    assert harms[0] == pytest.approx(harms[1])


@pytest.mark.slow
def test_accumulated_batches_are_one_whole_one(peft_model, tmp_path):
    ids = keep_windows(SftLoss(keep=20.0), AutoTokenizer.from_pretrained(TINY))
    assert ids.shape == (32, 257)
    weights = []
    for keep, batch, accumulate in ((2e3, 8, 1), (2e3, 2, 4), (0.0, 8, 1)):
        loss = MemFTLoss("memft_ot", keep=keep, keep_ids=ids[:2, :40])
        # AdamW would amplify the rounding of the model's float32 norms.
        sgd = {"steps": 4, "lr": 1.0, "optim": "sgd"}
        trainer = trained(peft_model, tmp_path, loss, batch, accumulate, **sgd)
        weights.append(adapters(trainer))
    whole, accumulated, free = weights
    for name, weight in whole.items():
        torch.testing.assert_close(accumulated[name], weight, rtol=0, atol=1e-8)
    assert any((free[name] - weight).abs().max() > 1e-4 for name, weight in whole.items())


def test_what_it_cannot_hold_down_is_refused(peft_model, tmp_path, text):
    with pytest.raises(UserError, match=r"loss\.keep_by=kl: must be energy in MemFTLoss"):
        MemFTLoss("sft", keep=1.0, keep_by="kl")
    with pytest.raises(UserError, match=r"loss\.keep=20: needs generic text; pass Trainer"):
        trained(peft_model, tmp_path, MemFTLoss("sft", keep=20.0))

    ids = torch.ones(1, 8, dtype=torch.long)
    plain = AutoModelForCausalLM.from_pretrained(TINY)
    with pytest.raises(UserError, match=r"loss\.keep_harm=0.1: the model has no LoRA modules"):
        LoraPenalty(SftLoss(keep_harm=0.1), plain, ids)

    dora = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(
        UserError, match=r"q_proj: unsupported adapter; it must be exactly one plain"
    ):
        LoraPenalty(SftLoss(keep=1.0), get_peft_model(copy.deepcopy(plain), dora), ids)
    with_norms = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"])
    with pytest.raises(
        UserError, match=r"only LoRA weights are trained, but .*norm.* is trainable"
    ):
        LoraPenalty(SftLoss(keep=1.0), get_peft_model(plain, with_norms), ids)


@pytest.mark.parametrize(
    "settings", [{"bias": "lora_only"}, {"lora_bias": True}, {"target_modules": ["embed_tokens"]}]
)
def test_what_adds_more_than_two_matrices_is_refused(settings):
    base = AutoModelForCausalLM.from_pretrained(TINY)
    for layer in base.model.layers:
        layer.self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(128))
    model = get_peft_model(base, LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | settings))
    with pytest.raises(UserError, match=r"loss\.keep=1: .*(is trainable too|unsupported adapter)"):
        LoraPenalty(SftLoss(keep=1.0), model, torch.ones(1, 8, dtype=torch.long))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.ones(8, dtype=torch.long), r"int64 of shape \(8,\); must be token ids \(n, T\)"),
        (torch.ones(0, 8, dtype=torch.long), r"of shape \(0, 8\); must be token ids"),
        (torch.ones(1, 2, dtype=torch.long), r"of shape \(1, 2\); .*T at least 3"),
        (torch.ones(1, 8), r"float32 of shape \(1, 8\); must be token ids"),
        (torch.full((1, 8), 2048), "ids that are not from 0 to 2047"),
        (torch.full((1, 8), -100), "ids that are not from 0 to 2047"),
        (torch.ones(1, 9999, dtype=torch.long), r"windows of 9999 tokens; the model reads \d+"),
    ],
)
def test_windows_that_a_model_cannot_read_are_refused(peft_model, ids, message):
    with pytest.raises(UserError, match=r"loss\.keep=1: keep_ids (is|has) .*" + message):
        LoraPenalty(SftLoss(keep=1.0), peft_model, ids)


@pytest.mark.parametrize("has_file", [False, True])
def test_the_windows_are_those_of_pmls_trainer(text, has_file):
    loss = SftLoss(keep=1.0, keep_text=text if has_file else None)
    windows = keep_windows(loss, AutoTokenizer.from_pretrained(TINY))
    assert torch.equal(windows, ids_of(generic_windows(Run(data=RandomData(), loss=loss))))


def test_windows_fit_the_context():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert keep_windows(SftLoss(keep=1.0), tokenizer, 100).shape == (32, 100)
