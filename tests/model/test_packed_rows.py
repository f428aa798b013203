"""Samples in packed rows get what each of them gets in a row of its own."""

import pytest
import torch
from support.facts import facts
from support.families import FAMILIES
from support.family_matrix import linear_adapter
from support.models import (
    adapter_of,
    initial_bank,
    local,
    random_bank,
    random_ids,
    save_random,
)

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter
from pml_cli.model.families import SEPARATE_ROWS
from pml_cli.model.loading import load_model
from pml_cli.model.packed_rows import PackingMode
from pml_cli.training.scoring import PackInputs, score_cells, scored_hidden

# Norms of most families compute in float32, also in a float64 model.
FLOAT32_NORMS = 1e-5
FLOAT64 = 1e-12


def outputs(model, bank, cells, *, packed):
    """Hidden states that predict the targets, the gradients of a loss on them, and the mode."""
    inputs = PackInputs(model, bank, cells, packed=packed)
    layout = inputs.layout(inputs.data.cells)
    assert (layout.packed is not None) == (inputs.shape is not None)
    hidden = scored_hidden(model, bank, layout, inputs.gather(layout))
    grads = torch.autograd.grad(hidden.square().mean(), bank.parameters())
    return hidden, grads, inputs


def assert_packed_equals_separate(model, bank, tolerance):
    """Cells of other counts of samples, which share some of them."""
    samples = facts(18)
    cells = [samples[:12], samples[5:]]
    bank.requires_grad_()
    hidden, grads, inputs = outputs(model, bank, cells, packed=True)
    expected, expected_grads, _ = outputs(model, bank, cells, packed=False)

    assert inputs.shape.common == 4
    assert (hidden - expected).abs().max() <= tolerance * expected.abs().max()
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert (grad - expected_grad).abs().max() <= tolerance * expected_grad.abs().max()
    return inputs


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize(
    ("family", "tolerance"),
    [
        ("gpt2", FLOAT64),
        ("gpt_neox", FLOAT64),
        ("qwen3", FLOAT32_NORMS),
        ("mistral", FLOAT32_NORMS),
        ("gemma2", FLOAT32_NORMS),
        ("gemma3_text", FLOAT32_NORMS),
    ],
)
def test_packed_equals_separate_in_float64(model_folder, family, kind, tolerance):
    model = load_model(local(model_folder(family), dtype="float64"))
    bank = random_bank(model, adapter_of(kind, family))
    inputs = assert_packed_equals_separate(model, bank, tolerance)
    shape = inputs.shape
    longest = inputs.data.ids.shape[1] - 1
    assert model.packing_mode(bank, shape.common, shape.tokens, longest) is PackingMode.KEYS


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    "adapter",
    [MlpBlockAdapter(), LinearAdapter(targets=["q_proj", "k_proj", "v_proj", "up_proj"])],
)
def test_the_first_and_the_last_layer(model_folder, layer, adapter):
    model = load_model(local(model_folder("qwen3"), layer=layer, dtype="float64"))
    assert_packed_equals_separate(model, random_bank(model, adapter), FLOAT32_NORMS)


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        # It norms all heads of a query together.
        ("olmo2", PackingMode.QUERIES),
        ("qwen3_moe", PackingMode.KEYS),
        # It masks by itself: in a longer row its window would be another one.
        ("gpt_neo", PackingMode.SEPARATE),
        # Rows and heads share a dimension of its biases.
        ("bloom", PackingMode.SEPARATE),
        # Recurrent layers.
        ("qwen3_next", PackingMode.SEPARATE),
        ("rwkv", PackingMode.SEPARATE),
    ],
)
def test_what_a_family_allows(model_folder, family, mode):
    model = load_model(local(model_folder(family), layer=0))
    adapter = MlpBlockAdapter() if family == "rwkv" else linear_adapter(model)
    bank = random_bank(model, adapter)
    assert model.packing_mode(initial_bank(model, adapter, [1]), 4, 96, 28) is mode
    # What the planner expects.
    assert (family in SEPARATE_ROWS) == (mode is PackingMode.SEPARATE)
    if mode is not PackingMode.SEPARATE:
        assert_packed_equals_separate(model, bank, 1e-4)


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_window_as_long_as_the_longest_sample(tmp_path, beyond):
    """The mask comes with the first token beyond the window."""
    window = max(len(sample.prompt) + len(sample.target) - 1 for sample in facts(18)) + beyond
    save_random("mistral", FAMILIES["mistral"] | {"sliding_window": window}, tmp_path)
    model = load_model(local(tmp_path, dtype="float64"))
    bank = random_bank(model, adapter_of("linear", "mistral"))
    assert_packed_equals_separate(model, bank, FLOAT32_NORMS)


def shift_by(share):
    """A forward hook: every token sees a little of the one before it in its row."""

    def hook(_module, _inputs, hidden):
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)
        return hidden + share * before

    return hook


def test_a_little_leak_is_seen_in_bfloat16(model_folder):
    """As large as the rounding that is allowed: a layer that hands on the token before."""
    model = load_model(local(model_folder("qwen3"), dtype="bfloat16"))
    bank = initial_bank(model, adapter_of("linear", "qwen3"), [2])
    assert model.packing_mode(bank, 4, 96, 28) is PackingMode.KEYS

    hook = model.layers[1].register_forward_hook(shift_by(0.03))
    # Another length, so that the first answer is not remembered.
    assert model.packing_mode(bank, 4, 95, 28) is PackingMode.SEPARATE
    hook.remove()


def test_layer_calls_are_recorded_before_the_prefix(model_folder, monkeypatch):
    """Of a streamed model, a later recording would read the embeddings into full memory."""
    model = load_model(local(model_folder("qwen3"), stream=True))
    bank = random_bank(model, adapter_of("linear", "qwen3"), ranks=(3,))
    inputs = PackInputs(model, bank, [facts(18)], packed=True)
    assert inputs.shape is not None

    monkeypatch.setattr(model, "_recorded_calls", None)
    whole = load_model(local(model_folder("qwen3")))
    scores = score_cells(model, bank, inputs)
    expected = score_cells(whole, bank, PackInputs(whole, bank, [facts(18)]))
    assert scores[0].nll == pytest.approx(expected[0].nll, rel=1e-4)


@pytest.mark.parametrize("evaluated", [100, 250, 10_000])
def test_scores_of_cells_that_end_in_other_batches(model_folder, monkeypatch, evaluated):
    """The smaller cell has no samples in the last batches of an evaluation."""
    monkeypatch.setattr("pml_cli.training.scoring.EVALUATION_TOKENS", evaluated)
    model = load_model(local(model_folder("gpt2"), dtype="float64"))
    bank = random_bank(model, MlpBlockAdapter())
    cells = [facts(18), facts(3)]
    packed = score_cells(model, bank, PackInputs(model, bank, cells, packed=True))
    separate = score_cells(model, bank, PackInputs(model, bank, cells))
    for scores, expected in zip(packed, separate, strict=True):
        assert scores.nll == pytest.approx(expected.nll, rel=1e-10)


def test_rows_of_a_small_batch_are_no_longer_than_it(model_folder):
    model = load_model(local(model_folder("gpt2")))
    bank = random_bank(model, MlpBlockAdapter(), ranks=(3,))
    inputs = PackInputs(model, bank, [facts(18)], packed=True)
    for piece, sample in zip(inputs.data.cells[0], facts(18), strict=True):
        layout = inputs.layout([[piece]])
        assert layout.tokens == len(sample.prompt) + len(sample.target) - 1
        assert layout.packed.rows.shape == (1, layout.tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_rows_of_similar_length_share_a_pass_of_the_prefix(model_folder, stream):
    """What is needed of each row is as without; of a streamed model too."""
    model = load_model(local(model_folder("gemma3_text"), stream=stream))
    bank = random_bank(model, MlpBlockAdapter())
    ids = random_ids(model, 5)
    lengths = [3, 21, 8, 20, 5]
    expected = model.prefix(ids, bank)
    prefix = model.prefix(ids, bank, rows=2, lengths=lengths)
    for name in ("entry", "block", "mlp_out"):
        states = getattr(prefix, name)
        assert states.shape == getattr(expected, name).shape
        for row, length in enumerate(lengths):
            needed = getattr(expected, name)[row, :length]
            torch.testing.assert_close(states[row, :length], needed)
