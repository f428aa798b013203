"""pml on real pretrained weights: loaded from either kind of file, they are the same model."""

import json

import pytest
import torch
from support.adapter_script import run_script
from support.models import adapter_of, initial_bank, random_bank

from pml_cli.config.schema import Model
from pml_cli.data.prompt import prompt_of
from pml_cli.data.sources.random import RandomData
from pml_cli.model.loading import load_model
from pml_cli.model.tokenizer import Tokenizer
from pml_cli.model.verify_split import split_matches_full

TEXT = "The capital of France is"
VOCABULARY = 49152


def settings(path, **changed):
    return Model(name="smollm2", path=str(path), device="cpu", **changed)


@pytest.fixture(scope="module")
def ids(smollm2_folder):
    tokenizer = Tokenizer(settings(smollm2_folder), VOCABULARY)
    return torch.tensor(
        [tokenizer.encode(f"{TEXT} Paris. It lies on the Seine, and had 2,100,000")]
    )


def logits(model, ids):
    with torch.no_grad():
        return model.model(input_ids=ids, use_cache=False).logits


def test_a_gguf_file_and_the_folder_are_one_model(smollm2, smollm2_gguf, ids):
    from_file = load_model(settings(smollm2_gguf))
    assert from_file.weights_hash() == smollm2.weights_hash()
    assert torch.equal(logits(from_file, ids), logits(smollm2, ids))


def test_it_knows_the_capital_of_france(smollm2, smollm2_folder):
    tokenizer = Tokenizer(settings(smollm2_folder), VOCABULARY)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    best = logits(smollm2, ids)[0, -1].argmax()
    assert tokenizer.decode([int(best)]) == " Paris"


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
def test_the_split_pass_is_the_whole_pass(smollm2, ids, kind):
    bank = random_bank(smollm2, adapter_of(kind, "llama"))
    assert split_matches_full(smollm2, bank, seed=0)

    # Untrained adapters change nothing, so that this is the model itself.
    bank = initial_bank(smollm2, adapter_of(kind, "llama"), [4]).to(smollm2.device)
    with torch.no_grad():
        split = smollm2.logits(smollm2.upper(smollm2.prefix(ids, bank), bank))
    assert torch.allclose(split, logits(smollm2, ids), atol=1e-3)


def test_the_tokenizer_is_that_of_transformers(smollm2_gguf, smollm2_folder):
    import transformers

    expected = transformers.AutoTokenizer.from_pretrained(smollm2_folder)
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": TEXT}]
    prompt = expected.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    texts = [TEXT, "  1,234 km\n\n\tété 🙂", "<|im_start|>user\nHi<|im_end|>"]

    for path in (smollm2_gguf, smollm2_folder):
        tokenizer = Tokenizer(settings(path), VOCABULARY)
        for text in texts:
            assert tokenizer.encode(text) == expected.encode(text, add_special_tokens=False)
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.begin == [expected.bos_token_id]
        assert tokenizer.special == set(expected.all_special_ids) | set(range(17))
        chat_ids = expected.encode(prompt, add_special_tokens=False)
        data = RandomData(chat=True, system="")
        assert list(prompt_of(tokenizer, data, (("user", TEXT),)).ids) == chat_ids


def test_streamed_is_whole(smollm2, smollm2_folder, ids):
    """To the last bit, also with an adapter."""
    streamed = load_model(settings(smollm2_folder, stream=True))
    results = []
    for model in (smollm2, streamed):
        bank = random_bank(model, adapter_of("mlp_block", "llama"))
        with torch.no_grad():
            results.append(model.logits(model.upper(model.prefix(ids, bank), bank)))
    assert torch.equal(*results)
    # Read from the files again, layer by layer.
    assert streamed.weights_hash() == smollm2.weights_hash()


def test_a_probe_recalls_a_text_whole_and_the_run_is_that_of_the_weights(
    quick, smollm2_gguf, tmp_path
):
    """Priced before, trained behind the default prompt, found again when the file has moved."""
    options = ["model=hf", "model.device=cpu", "model.name=smollm2", "data=text", "rank=8"]
    options += ["seqlen=32", "train.lr=1e-2", "train.steps=60", "train.stop=recalled", "out=out"]

    priced = quick("sweep", *options, f"model.path={smollm2_gguf}", "--dry-run")
    assert priced.returncode == 0
    assert "1 cell, 0 done already, 1 to train in 1 pack" in priced.stdout
    # Weights in float32 are 0.5 GiB of it.
    assert "memory of a device: up to about 5" in priced.stdout

    probed = quick("probe", *options, f"model.path={smollm2_gguf}")
    assert probed.returncode == 0
    (path,) = (tmp_path / "out").glob("*/result.json")
    result = json.loads(path.read_text())
    assert result["exact_match"] == result["free_exact_match"] == 1
    assert result["base_loss"] > 3 > 0.5 > result["final_loss"]
    (line,) = (path.parent / "samples.jsonl").read_text("utf-8").splitlines()
    sample = json.loads(line)
    assert sample["whole"]
    # Behind begin-of-text alone the first token cannot be learned.
    assert sample["prompt"] == "<|im_start|>Text:"
    assert run_script(path.parent) == sample["target"]

    adapter = json.loads((path.parent / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(smollm2_gguf.parent)

    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "other.gguf").symlink_to(smollm2_gguf)
    again = quick("probe", *options, f"model.path={moved}")
    assert "done already" in again.stdout + again.stderr
