"""The loss for other trainers: against pml's own, and in transformers' Trainer on real text."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.hf_training import adapters, texts, trained
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_outputs import CausalLMOutput

import pml_cli
from pml_cli.config.schema import TINY, Model, Run
from pml_cli.data.opened import source_of
from pml_cli.data.source import Sample
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.errors import UserError
from pml_cli.model.head import logit_nll
from pml_cli.training.batches import PackData
from pml_cli.training.hf_trainer import MemFTCallback, MemFTLoss
from pml_cli.training.loss_groups import LossGroups
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.sample_memory import IGNORED
from pml_cli.training.trainer import Cell, tokens_by_cell
from pml_cli.training.trainer import Trainer as PackTrainer

LOSSES = [
    SftLoss(),
    MemftOtLoss(),
    MemftOtLoss(when_done="zero"),
    # No token is above this threshold: all count.
    MemftOtLoss(threshold=50.0),
    MemftSwLoss(window=2, patience=1, tau=3),
    MemftMarginLoss(switch=1.0),
    MemftMarginLoss(margin=1.0, switch=0.0),
]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_weights_and_loss_are_those_of_the_pack_trainer(double_base, loss):
    """The same padded batch, three times over: what is remembered of samples too."""
    run = Run(rank=4, seqlen=60, model=Model(), data=PhonebookData(), loss=loss)
    cell = Cell(run=run, samples=source_of(run).take(60))
    trainer = PackTrainer(double_base, [cell])
    drop_in = MemFTLoss(loss)
    layout, inputs = trainer.fixed_batch.layout, trainer.fixed_batch.inputs
    parameters = trainer.pack.bank.parameters()

    batch = trainer.pack.inputs.data.ids[layout.rows, : layout.tokens + 1]
    labels = torch.full_like(batch, IGNORED)
    for row, sample in enumerate(cell.samples):
        begin = len(sample.prompt)
        labels[row, begin : begin + len(sample.target)] = torch.tensor(sample.target)

    drop_in.begin_step(0.0)
    for step in range(3):
        _, scores = trainer._forward()
        progress = 0.0 if isinstance(loss, MemftMarginLoss) else step / 3
        expected = trainer.pack.losses.weights(tokens_by_cell(layout, scores), progress)

        logits = double_base.logits(double_base.upper(inputs, trainer.pack.bank))
        # The last token predicts nothing.
        logits = F.pad(logits, (0, 0, 0, 1))
        value = drop_in(CausalLMOutput(logits=logits), labels, input_ids=batch)
        torch.testing.assert_close(value, expected.loss[0], rtol=1e-6, atol=1e-9)
        # Where no token is above the threshold the drop-in takes the mean in the sums of the step.
        if not (isinstance(loss, MemftOtLoss) and loss.threshold == 50):
            weight = drop_in.weighted.weight
            torch.testing.assert_close(weight, expected.weight, rtol=1e-6, atol=1e-9)

        grads = torch.autograd.grad(value, parameters, retain_graph=True)
        expected_grads = torch.autograd.grad(expected.loss.sum(), parameters)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-10)
        for parameter, grad in zip(parameters, expected_grads, strict=True):
            parameter.data -= 3.0 * grad


# The first prompt with two answers, an answer of two prompts, and a whole sample three times over.
REPEATS = [
    Sample(prompt=(1, 2), target=(3, 4)),
    Sample(prompt=(1, 2), target=(5, 4)),
    Sample(prompt=(2, 2), target=(3, 4)),
    Sample(prompt=(1, 2), target=(3, 4)),
    Sample(prompt=(6,), target=(3, 4, 5)),
    Sample(prompt=(1, 2), target=(3, 4)),
]


@pytest.mark.parametrize("minibatches", [[[0, 1, 2, 3, 4, 5]], [[0, 1], [3, 2], [5, 4]]])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "loss",
    [
        MemftSwLoss(window=1, patience=1, tau=3),
        MemftMarginLoss(growth=2.0, switch=1.0),
        MemftMarginLoss(growth=2.0, switch=0.0),
    ],
    ids=str,
)
def test_repeats_share_a_memory_as_in_the_pack_trainer(loss, minibatches, side):
    """Free logits, the same for equal tokens: which tokens are wrong changes from step to step."""
    data = PackData([REPEATS], torch.device("cpu"))
    engine = LossGroups([loss], len(REPEATS), torch.device("cpu"))
    drop_in = MemFTLoss(loss)
    generator = torch.Generator().manual_seed(3)

    weights = []
    for chosen in minibatches * 6:
        layout = data.layout([[data.cells[0][i] for i in chosen]])
        logits = 2 * torch.randn(len(data.rows), layout.tokens, 7, generator=generator)
        logits = logits.double()[layout.rows]
        scores = logit_nll(logits.flatten(0, 1)[layout.scored], layout.targets)
        expected = engine.weights(tokens_by_cell(layout, scores), 0.0)

        ids, mask, labels, shifted = padded_rows([REPEATS[i] for i in chosen], logits, side)
        drop_in.begin_step(0.0)
        value = drop_in({"logits": shifted}, labels, input_ids=ids, attention_mask=mask)
        torch.testing.assert_close(value, expected.loss[0])
        torch.testing.assert_close(drop_in.weighted.weight, expected.weight)
        weights.append(expected.weight)
    # The memory has an effect: with windows and targets that never grow the weights would not.
    assert len({weight.sum().item() for weight in weights}) > 3


def padded_rows(samples, logits, side):
    """Ids, attention mask, labels and logits of a batch, padded on one side."""
    longest = max(len(sample.prompt) + len(sample.target) for sample in samples) + 1
    ids = torch.zeros(len(samples), longest, dtype=torch.int64)
    # Other ids as padding in every batch: they are no part of a sample.
    ids += len(samples)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    shifted = torch.zeros(len(samples), longest, logits.shape[-1], dtype=logits.dtype)

    for row, sample in enumerate(samples):
        length = len(sample.prompt) + len(sample.target)
        start = longest - length if side == "left" else 0
        ids[row, start : start + length] = torch.tensor([*sample.prompt, *sample.target])
        mask[row, start : start + length] = 1
        answer = start + len(sample.prompt)
        labels[row, answer : start + length] = torch.tensor(sample.target)
        shifted[row, start : start + length - 1] = logits[row, : length - 1]
    return ids, mask, labels, shifted


def test_equal_answers_to_two_prompts_are_two_samples_in_the_trainer(peft_model, tmp_path):
    trainer = trained(peft_model, tmp_path, MemftSwLoss(), steps=2, rows=with_equal_answers())
    # Four prompts, one answer; left or right of them only padding differs.
    assert len(trainer.compute_loss_func._memory) == 4
    assert trainer.model._forward_pre_hooks == {}


def with_equal_answers():
    """Four samples twice, of which only the prompts differ."""
    rows = texts(4)
    for row in rows:
        is_answer = row["labels"] != IGNORED
        row["input_ids"][is_answer] = 5
        row["labels"][is_answer] = 5
    return rows * 2


@pytest.fixture(scope="module")
def peft_model():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype="float64")
    return get_peft_model(
        model, LoraConfig(r=8, lora_alpha=8, target_modules=["down_proj"], lora_dropout=0.0)
    ).double()


def accumulate(loss, leaf, labels, batches):
    """One optimiser step in some micro-batches; its loss, added up as Trainer does for its log."""
    vocabulary = leaf.shape[-1]
    tokens = labels.shape[-1]
    count = (labels[..., 1:] != IGNORED).sum()
    total = 0.0
    for logits, part_labels in zip(
        leaf.reshape(batches, -1, tokens, vocabulary),
        labels.reshape(batches, -1, tokens),
        strict=True,
    ):
        value = loss(
            {"logits": logits}, part_labels, num_items_in_batch=count, input_ids=part_labels
        )
        value.backward(retain_graph=True)
        total += value.item()
    return total


@pytest.mark.parametrize("is_late", [False, True])
def test_the_plain_mean_is_taken_back_when_a_later_micro_batch_is_above_the_threshold(is_late):
    """Free logits: two micro-batches are learned; the third is too, or has a token that is not."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (3, 2, 5), generator=generator)
    labels[1, 0, 3:] = IGNORED
    logits[..., :-1, :].scatter_(-1, labels[..., 1:, None].clamp(min=0), 9.0)
    if is_late:
        logits[2, 1, 2] = 0.0
        logits[2, 0, 1] = 1.0

    leaves = []
    totals = []
    for batches in (1, 3):
        leaf = logits.clone().requires_grad_()
        loss = MemFTLoss("memft_ot")
        loss.begin_training([leaf])
        loss.begin_step(0.0)
        totals.append(accumulate(loss, leaf, labels, batches))
        leaves.append(leaf)

    nll = F.cross_entropy(
        logits[..., :-1, :].reshape(-1, 7),
        labels[..., 1:].reshape(-1),
        reduction="none",
        ignore_index=IGNORED,
    )
    count = (labels[..., 1:] != IGNORED).sum()
    expected = nll[nll > 0.6931].mean() if is_late else nll.sum() / count
    assert totals == pytest.approx([expected.item()] * 2)
    one_batch, micro_batches = leaves
    torch.testing.assert_close(micro_batches.grad, one_batch.grad, rtol=1e-9, atol=1e-15)
    assert (micro_batches.grad[0].abs().sum() == 0) == is_late


def test_the_target_margin_grows_alike_in_one_batch_and_in_micro_batches():
    """Logits win by 1 and more: the first step asks for 0.1, the second for the next 0.1 x 2^k."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(7, (3, 2, 5), generator=generator)
    margins = 1 + torch.rand(3, 2, 4, generator=generator, dtype=torch.float64)
    logits = torch.zeros(3, 2, 5, 7, dtype=torch.float64)
    logits[..., :-1, :].scatter_(-1, labels[..., 1:, None], margins[..., None])

    grads = []
    for batches in (1, 3):
        leaf = logits.clone().requires_grad_()
        loss = MemFTLoss("memft_margin", margin=0.1, growth=2.0, switch=0.0)
        loss.begin_training([leaf])
        totals = []
        for _ in range(2):
            loss.begin_step(0.5)
            totals.append(accumulate(loss, leaf, labels, batches))
        # 0.1, 0.2, 0.4 and 0.8 are won by already.
        short = margins[margins < 1.6]
        assert totals == pytest.approx([0.0, (1.6 - short).mean().item()])
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-15)


def test_a_sample_that_comes_twice_in_a_step_counts_once_in_one_batch_and_in_micro_batches():
    """The window of a sample grows by its steps, not by how often it comes in one."""
    generator = torch.Generator().manual_seed(2)
    row = torch.randn(1, 6, 7, generator=generator, dtype=torch.float64)
    logits = row.repeat(2, 1, 1)
    labels = torch.randint(7, (1, 6), generator=generator).repeat(2, 1)

    totals = []
    for batches in (1, 2):
        leaf = logits.clone().requires_grad_()
        loss = MemFTLoss("memft_sw", window=1, tau=2.0, patience=1, floor=0.0)
        loss.begin_training([leaf])
        steps = []
        for step in range(4):
            loss.begin_step(step / 4)
            steps.append(accumulate(loss, leaf, labels, batches))
        totals.append(steps)
    assert totals[0] == pytest.approx(totals[1])
    # The window does grow: else the steps would not differ.
    assert len(set(totals[0])) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [MemftOtLoss(threshold=5.0), MemftSwLoss(window=2, patience=1, tau=3), MemftMarginLoss()],
    ids=lambda loss: loss.kind,
)
def test_four_accumulated_batches_of_two_are_one_of_eight(peft_model, tmp_path, loss):
    """With clipping, padding, and micro-batches without an active token; the log agrees too.

    Adapters are float64, yet the model's norms are float32 inside: hence SGD, as AdamW amplifies
    the rounding of tiny gradients.
    """
    sgd = {"steps": 4, "lr": 1.0, "optim": "sgd"}
    one_batch = trained(peft_model, tmp_path, loss, 8, 1, **sgd)
    accumulated = trained(peft_model, tmp_path, loss, 2, 4, **sgd)

    expected = adapters(one_batch)
    initial = dict(peft_model.named_parameters())
    for name, adapter in adapters(accumulated).items():
        torch.testing.assert_close(adapter, expected[name], rtol=0, atol=1e-8)
        assert not torch.equal(adapter, initial[name])
        assert "lora_A" in name or (adapter - initial[name]).abs().max() > 1e-3

    log = accumulated.state.log_history[:-1]
    expected_log = one_batch.state.log_history[:-1]
    for line, expected_line in zip(log, expected_log, strict=True):
        for key in ("loss", "grad_norm", "share_above_threshold", "stubborn_tokens"):
            assert line[key] == pytest.approx(expected_line[key], rel=1e-5, abs=1e-7)


def one_batch_of_texts():
    rows = texts()
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


@pytest.mark.slow
def test_it_trains_on_real_text_and_logs_stubborn_tokens(peft_model, tmp_path):
    trainer = trained(peft_model, tmp_path, "memft_margin", steps=60, lr=1e-2)
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    scored = sum(int((row["labels"][1:] != IGNORED).sum()) for row in texts())
    assert first["stubborn_tokens"] == pytest.approx(scored * (1 - first["share_above_threshold"]))
    assert last["stubborn_tokens"] < first["stubborn_tokens"] / 2

    batch = one_batch_of_texts()
    targets = batch["labels"][:, 1:]
    trainer.model.eval()
    with torch.no_grad():
        correct = trainer.model(**batch).logits[:, :-1].argmax(-1) == targets
    assert correct[targets != IGNORED].float().mean() > 0.9


def test_evaluation_is_plain_cross_entropy_and_leaves_no_trace(peft_model, tmp_path):
    trainer = trained(peft_model, tmp_path, MemftSwLoss(), steps=2)
    memory = trainer.compute_loss_func._memory
    state = {name: values.clone() for name, values in memory._current.items()}
    # One sample a row.
    assert len(memory) == 8
    assert set(state) == {"anchor", "stale"}

    eval_loss = trainer.evaluate(texts())["eval_loss"]
    with torch.no_grad():
        expected = trainer.model.eval()(**one_batch_of_texts()).loss.item()
    assert eval_loss == pytest.approx(expected, rel=1e-5)
    assert len(memory) == 8
    for name, values in memory._current.items():
        assert torch.equal(values, state[name])


def test_what_needs_the_callback_says_so(peft_model, tmp_path):
    with pytest.raises(UserError, match="gradient accumulation: add MemFTCallback"):
        trained(peft_model, tmp_path, "memft_ot", 2, 4, callback=False)
    with pytest.raises(UserError, match="add MemFTCallback"):
        trained(peft_model, tmp_path, "memft_margin", callback=False)
    with pytest.raises(UserError, match=r"memft_sw remembers every sample.*add MemFTCallback"):
        trained(peft_model, tmp_path, "memft_sw", callback=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor=0\.1.*leave it at 0"),
        ({"parallelism_config": SimpleNamespace(tp_size=2)}, "tensor, context or sequence"),
        ({"parallelism_config": SimpleNamespace(tp_size=1, cp_size=4)}, "tensor, context or seq"),
        ({"n_gpu": 2}, "one process a GPU"),
    ],
    ids=str,
)
def test_what_would_train_on_other_gradients_is_refused(settings, said):
    plain = {
        "n_gpu": 1,
        "gradient_accumulation_steps": 1,
        "deepspeed": None,
        "fsdp": None,
        "label_smoothing_factor": 0.0,
        "parallelism_config": None,
    }
    callback = MemFTCallback(MemFTLoss("memft_ot"))
    with pytest.raises(UserError, match=said):
        callback.on_train_begin(SimpleNamespace(**plain | settings), model=torch.nn.Linear(1, 1))


@pytest.mark.slow
def test_without_accumulation_the_callback_changes_nothing(peft_model, tmp_path):
    expected = adapters(trained(peft_model, tmp_path, "memft_ot", steps=2))
    without = trained(peft_model, tmp_path, "memft_ot", steps=2, callback=False)
    for name, adapter in adapters(without).items():
        torch.testing.assert_close(adapter, expected[name], rtol=1e-12, atol=1e-12)


def test_settings_are_checked():
    with pytest.raises(UserError, match="did you mean 'memft_ot'"):
        MemFTLoss("memft_o")
    with pytest.raises(
        UserError, match=r"loss\.kapa: no such setting of memft_sw; allowed: threshold, kappa"
    ):
        MemFTLoss("memft_sw", kapa=1)
    with pytest.raises(UserError, match=r"loss\.margin=-1: must be"):
        MemFTLoss("memft_margin", margin=-1)
    with pytest.raises(UserError, match=r"loss.margin='x': must be a number"):
        MemFTLoss("memft_margin", margin="x")
    assert MemFTLoss("memft_margin_facts", margin=1).loss == MemftMarginLoss(margin=1, switch=1.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MemFTLoss(None), "loss: must be"),
        (lambda: MemFTLoss(5), "loss: must be"),
        (
            lambda: MemFTLoss(MemftMarginLoss(), margin=1),
            "loss.margin: is for a loss given",
        ),
        (
            lambda: MemFTLoss("memft_margin", keep=1, keep_ids=[[1, 2]]),
            "keep_ids: must be a tensor",
        ),
        (lambda: MemFTCallback(None), "loss: must be a MemFTLoss, not NoneType"),
        (lambda: MemFTCallback("memft_ot"), "not str"),
    ],
)
def test_what_is_no_loss_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([[-100, 1, 7]]), "a label of 7"),
        (torch.tensor([[-100, 1, -1]]), "a label of -1"),
        (torch.tensor([[-100, 1, 2, 3]]), r"labels \(1, 4\)"),
        (torch.tensor([-100, 1, 2]), r"labels \(3,\)"),
    ],
)
@pytest.mark.parametrize("is_training", [True, False])
def test_labels_that_do_not_fit_the_logits_are_refused(labels, said, is_training):
    logits = torch.randn(1, 3, 5, requires_grad=is_training)
    with torch.set_grad_enabled(is_training), pytest.raises(UserError, match=said):
        MemFTLoss("sft")({"logits": logits}, labels)


def test_the_first_label_is_not_scored_whatever_it_is():
    logits = torch.randn(1, 3, 5)
    plain, other = torch.tensor([[0, 1, 2]]), torch.tensor([[999_999, 1, 2]])
    loss = MemFTLoss("sft")
    with torch.no_grad():
        assert loss({"logits": logits}, other) == loss({"logits": logits}, plain)


def test_virtual_tokens_of_prompt_tuning_come_before_the_batch():
    logits, labels = torch.randn(2, 7, 5), torch.randint(5, (2, 3))
    loss = MemFTLoss("sft")
    with torch.no_grad():
        assert loss({"logits": logits}, labels) == loss({"logits": logits[:, 4:]}, labels)


@pytest.mark.parametrize("outputs", [(torch.zeros(1, 3, 5),), {}, {"logits": None}, None])
def test_outputs_without_logits_are_refused(outputs):
    with pytest.raises(UserError, match="has no logits"):
        MemFTLoss("sft")(outputs, torch.tensor([[0, 1, 2]]))


@pytest.mark.parametrize("labels", [None, [[0, 1, 2]], torch.zeros(1, 3)])
def test_labels_that_are_no_ids_are_refused(labels):
    with pytest.raises(UserError, match="labels: must be a tensor of token ids"):
        MemFTLoss("sft")({"logits": torch.zeros(1, 3, 5)}, labels)


def test_numbers_of_numpy_are_numbers_and_flags_are_none():
    assert MemFTLoss("memft_ot", threshold=np.float32(0.5)).loss.threshold == 0.5
    with pytest.raises(UserError, match=r"loss\.keep=True: must be"):
        MemFTLoss("memft_ot", keep=True)


def test_the_public_names_come_late():
    code = "import sys, pml_cli; print('torch' in sys.modules)"
    root = Path(pml_cli.__file__).parent.parent
    assert pml_cli.MemFTLoss is MemFTLoss
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError):
        _ = pml_cli.nothing


def trained_in_trl(folder, batch, accumulate):
    """Adapters after a short training in TRL's SFTTrainer."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = [{name: row[name].tolist() for name in ("input_ids", "labels")} for row in texts()]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.pad_token = tokenizer.eos_token
    loss = MemFTLoss("memft_margin")

    torch.manual_seed(0)
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        max_steps=4,
        learning_rate=0.5,
        optim="sgd",
        use_cpu=True,
        bf16=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(TINY, dtype="float32"),
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
        compute_loss_func=loss,
        callbacks=[MemFTCallback(loss)],
        peft_config=LoraConfig(r=8, target_modules=["down_proj"], lora_dropout=0.0),
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_A" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    trainer.train()
    return adapters(trainer)


def test_accumulation_in_trls_trainer(tmp_path):
    one_batch = trained_in_trl(tmp_path, 8, 1)
    accumulated = trained_in_trl(tmp_path, 2, 4)
    for name, adapter in one_batch.items():
        torch.testing.assert_close(adapter, accumulated[name], rtol=0, atol=1e-6)
        assert "lora_A" in name or adapter.abs().max() > 1e-3


def train_on_devices(count, batch, accumulate, folder):
    """Run tests/support/two_devices.py in `count` processes."""
    tests = Path(__file__).parents[1]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    # As a module: beside the script lie files named like libraries.
    script = ["-m", "support.two_devices", folder, batch, accumulate]
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, script)],
        check=False,
        env=os.environ | {"PYTHONPATH": f"{tests.parent}:{tests}", "OMP_NUM_THREADS": "1"},
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.slow
def test_two_devices_are_one_with_the_batch_of_both(tmp_path):
    """Two processes of four rows, in two micro-batches each, against one process of eight rows."""
    train_on_devices(1, 8, 1, tmp_path / "one")
    train_on_devices(2, 2, 2, tmp_path / "two")
    for loss in ("memft_ot", "memft_sw", "memft_margin"):
        expected = torch.load(tmp_path / "one" / f"{loss}.pt")
        results = torch.load(tmp_path / "two" / f"{loss}.pt")
        assert results["adapter"].keys() == expected["adapter"].keys()
        for name, adapter in results["adapter"].items():
            torch.testing.assert_close(adapter, expected["adapter"][name], rtol=0, atol=1e-8)
        assert results["loss"] == pytest.approx(expected["loss"], rel=1e-5)
