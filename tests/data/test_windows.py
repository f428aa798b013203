"""Text for measuring forgetting: unseen by the run, and of any size."""

import pytest

from pml_cli.config.schema import Model, Run
from pml_cli.data.opened import source_of
from pml_cli.data.sources.mixed import MixedData
from pml_cli.data.sources.text import TextData
from pml_cli.data.windows import SHARED, random_pool, text_pool, trained_targets
from pml_cli.errors import UserError


@pytest.mark.parametrize("data", [TextData(), TextData(seed=3), MixedData(seed=1)], ids=repr)
def test_windows_share_nothing_with_what_the_run_was_trained_on(data):
    run = Run(seqlen=900, data=data)
    targets = trained_targets(run, source_of(run).take(900))
    windows = text_pool(run.model, None).windows_without(targets, 2000)
    assert sum(len(window.target) for window in windows) == 2000

    # Of mixed data, also the text under the random tokens.
    text = source_of(Run(data=TextData(seed=data.seed))).take(900)[0].target
    trained = {text[i : i + SHARED] for i in range(len(text) - SHARED + 1)}
    for window in windows:
        for i in range(len(window.target) - SHARED + 1):
            assert window.target[i : i + SHARED] not in trained

    # The same for every loss: pairs stay pairs.
    assert text_pool(run.model, None).windows_without(targets, 2000) == windows


def test_a_text_shorter_than_one_window(tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("A text that is shorter than one window, and all there is.")
    pool = text_pool(Model(), str(file))
    (window,) = pool.windows_without([], 2000)
    assert 5 < len(window.target) < 40
    assert pool.windows_without([window.target], 2000) == []
    # A fact of fewer tokens than those that may not be shared counts whole.
    assert pool.windows_without([window.target[5:10]], 2000) == []


def test_random_windows_have_as_many_tokens_as_asked_for():
    windows = random_pool(Model(), 700).windows_without([], 700)
    assert sum(len(window.target) for window in windows) == 700
    assert random_pool(Model(), 700).windows_without([], 0) == []


def test_a_model_without_a_tokenizer_has_random_windows_only():
    architecture = {
        "model_type": "llama",
        "vocab_size": 50,
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    model = Model(name="bare", weights="random", architecture=architecture)
    assert not text_pool(model, None).windows
    assert "no tokenizer" in text_pool(model, None).reason
    windows = random_pool(model, 100).windows_without([], 100)
    assert max(len(window.prompt) + len(window.target) for window in windows) <= 64


def test_a_file_that_is_no_text_is_named_by_its_option(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"^text="):
        text_pool(Model(), str(tmp_path / "binary"))
