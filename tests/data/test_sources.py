"""Every data source: its lengths and seeds, and the faults of files by line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from pml_cli.config.schema import TINY as TINY_FOLDER
from pml_cli.config.schema import Model
from pml_cli.data.source import Sample, Source, check_length
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.data.sources.mixed import MixedData
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.rule import RuleData
from pml_cli.data.sources.text import TextData
from pml_cli.errors import UserError
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.training.batches import PackData, SampleOrder

TINY = Model(device="cpu")
WORDS = (
    "Once there was a ferry that crossed the lake at dawn, and nobody knew its captain's name.\n\n"
)


def take(data, seqlen, model=TINY):
    return data.open(model).take(seqlen)


def only(data, seqlen, model=TINY):
    (sample,) = take(data, seqlen, model)
    return sample


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("".join(f"Paragraph {i}. {WORDS}" for i in range(30)), "utf-8")
    return str(path)


def jsonl(tmp_path, rows, name="facts.jsonl"):
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("\n".join(lines).encode())
    return str(path)


SOURCES = {
    "random": RandomData(),
    "text": TextData(),
    "mixed": MixedData(random_share=0.5),
    "phonebook": PhonebookData(),
    "rule": RuleData(),
}


@pytest.mark.parametrize("name", SOURCES)
def test_lengths_are_prefixes_of_one_sequence(name):
    source = SOURCES[name].open(TINY)
    longest = source.take(700)
    for seqlen in (1, 2, 37, 255, 256, 699):
        if seqlen < source.min_tokens:
            continue
        shorter = source.take(seqlen)
        total = sum(len(s.target) for s in shorter)
        assert [s.prompt for s in shorter] == [s.prompt for s in longest[: len(shorter)]]
        flat = [t for s in shorter for t in s.target]
        assert flat == [t for s in longest for t in s.target][:total]
        assert seqlen - 12 < total <= seqlen
        has_whole_facts = name in ("phonebook", "rule")
        assert total == seqlen or has_whole_facts


@pytest.mark.parametrize("name", SOURCES)
def test_seeds_decide_the_sequence(name):
    data = SOURCES[name]
    assert take(data, 60) == take(replace(data, seed=0), 60)
    assert take(data, 60) != take(replace(data, seed=1), 60)


def test_random_tokens_are_uniform_and_never_special():
    sample, tokenizer = only(RandomData(), 40000), open_tokenizer(TINY)
    assert sample.prompt == tuple(tokenizer.begin)
    assert tokenizer.special
    assert not set(sample.target) & tokenizer.special
    counts = np.bincount(sample.target, minlength=2048)
    assert len(np.unique(sample.target)) == 2048 - len(tokenizer.special)
    assert counts.max() < 60  # about 20 each
    assert RandomData().open(TINY).entropy == pytest.approx(np.log(2048 - len(tokenizer.special)))


def test_random_tokens_for_a_model_that_has_only_an_architecture():
    sizes = {
        "model_type": "llama",
        "vocab_size": 11,
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
    }
    bare = Model(weights="random", path="tiny", architecture=sizes)
    sample = only(RandomData(), 500, bare)
    assert sample.prompt == (0,)
    assert set(sample.target) == set(range(1, 11))
    with pytest.raises(UserError, match="no tokenizer"):
        RandomData(prompt="hello").open(bare)


def test_a_random_target_after_a_prompt():
    tokenizer = open_tokenizer(TINY)
    sample = only(RandomData(prompt="Repeat: "), 9)
    assert sample.prompt == (*tokenizer.begin, *tokenizer.encode("Repeat: "))
    assert sample.target == only(RandomData(), 9).target


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 0.99, 1), (0.4, 0.37, 0.43)])
def test_the_share_of_random_tokens(share, low, high):
    text, mixed = only(TextData(), 4000), only(MixedData(random_share=share), 4000)
    changed = np.mean(np.array(text.target) != np.array(mixed.target))
    assert low <= changed <= high
    special = open_tokenizer(TINY).special
    assert not set(mixed.target) & special
    nats = MixedData(random_share=share).open(TINY).entropy
    assert (nats is not None) == (share == 1)


def test_shares_replace_nested_positions_with_the_same_tokens():
    text = only(TextData(), 500).target
    less_random = only(MixedData(random_share=0.3), 500).target
    more_random = only(MixedData(random_share=0.7), 500).target
    for token, of_less, of_more in zip(text, less_random, more_random, strict=True):
        assert of_less in (token, of_more)


def test_text_of_a_file_with_bom_and_crlf(tmp_path, text_file):
    plain = only(TextData(path=text_file), 200)
    content = (tmp_path / "notes.txt").read_text("utf-8")
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    assert only(TextData(path=str(tmp_path / "dos.txt")), 200) == plain
    assert open_tokenizer(TINY).decode(list(plain.target)).startswith("Paragraph 0. Once there was")


def test_a_seed_starts_the_text_at_a_paragraph_and_goes_round(text_file):
    tokenizer = open_tokenizer(TINY)
    whole = TextData(path=text_file).open(TINY)
    turned = TextData(path=text_file, seed=4).open(TINY)
    start = tokenizer.decode(list(turned.take(5)[0].target))
    assert start.startswith("Paragraph")
    assert not start.startswith("Paragraph 0")
    assert (
        abs(turned.max_tokens - whole.max_tokens) <= 3
    )  # the same text, but for what meets at the seams


@pytest.mark.parametrize("data", [TextData, JsonlData])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b" \n\r\n\t", "empty file"),
        (b"\xef\xbb\xbf", "empty file"),
        (b"some \xff bytes", "not UTF-8 text (byte 5)"),
        (b"PK\x03\x04\x00\x00\x08", "binary file"),
        (bytes(range(256)), "not UTF-8"),
    ],
)
def test_files_that_are_no_text(tmp_path, data, content, message):
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        data(path=str(path)).open(TINY)
    assert str(caught.value).startswith(f"data.path={path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [TextData, JsonlData])
def test_a_folder_or_nothing_in_place_of_a_file(tmp_path, data):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"data\.path="):
            data(path=str(path)).open(TINY)


def test_short_facts_stay_whole(tmp_path):
    rows = [{"query": f"Key {i}:", "target": f"value {i * 37}"} for i in range(20)]
    source = JsonlData(path=jsonl(tmp_path, rows)).open(TINY)
    tokenizer = open_tokenizer(TINY)
    samples = source.take(source.max_tokens)
    assert len(samples) == 20
    assert [tokenizer.decode(list(s.target)) for s in samples] == [row["target"] for row in rows]
    assert samples[3].prompt == (*tokenizer.begin, *tokenizer.encode("Key 3:"))
    two = sum(len(s.target) for s in samples[:2])
    assert len(source.take(two)) == len(source.take(two + 1)) == 2
    with pytest.raises(UserError, match=f"has only {source.max_tokens}"):
        source.take(source.max_tokens + 1)
    with pytest.raises(UserError, match="the first sample alone"):
        source.take(len(samples[0].target) - 1)


def test_the_last_of_long_texts_is_cut(tmp_path):
    rows = [{"question": f"Part {i}:", "matching": WORDS * 2} for i in range(3)]
    source = JsonlData(path=jsonl(tmp_path, rows)).open(TINY)
    length = source.max_tokens // 3
    samples = source.take(2 * length - 7)
    assert [len(s.target) for s in samples] == [length, length - 7]
    assert samples[1].target == source.take(source.max_tokens)[1].target[: length - 7]
    assert len(source.take(length)) == 1
    assert len(source.take(length + 1)) == 2


def test_lines_may_hold_what_only_unicode_calls_a_line_end(tmp_path):
    """Raw U+2028, U+0085 and form feeds are legal inside a JSON string or a text."""
    rows = [{"query": "a\u2028b:", "target": "one\u0085two"}, {"query": "c:", "target": "three"}]
    source = JsonlData(path=jsonl(tmp_path, rows)).open(TINY)
    samples = source.take(source.max_tokens)
    assert len(samples) == 2
    assert open_tokenizer(TINY).decode(list(samples[0].target)) == "one\u0085two"


def test_jsonl_with_bom_crlf_and_blank_lines(tmp_path):
    path = tmp_path / "dos.jsonl"
    rows = [{"query": "a:", "target": "1"}, {"query": "b:", "target": "2"}]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(map(json.dumps, rows)).encode() + b"\r\n")
    plain = JsonlData(path=jsonl(tmp_path, rows)).open(TINY)
    assert take(JsonlData(path=str(path)), plain.max_tokens) == plain.take(plain.max_tokens)


GOOD = {"query": "a:", "target": "1"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, "{broken"], "line 2 is not JSON"),
        ([GOOD, "", "", "[]"], "line 4 is a list, not an object with keys"),
        ([{"query": "a:"}], "line 1 has a prompt (query) and no target"),
        ([GOOD, {"query": "a:", "target": ""}], "line 2: target is empty"),
        ([GOOD, {"question": "a:", "matching": "b"}], "line 2 has question/matching, line 1"),
        (["null"], "line 1 is null"),
    ],
)
def test_malformed_lines_are_named_by_number(tmp_path, rows, message):
    with pytest.raises(UserError) as caught:
        JsonlData(path=jsonl(tmp_path, rows)).open(TINY)
    assert str(caught.value).startswith(f"data.path={tmp_path / 'facts.jsonl'}: line ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_digit_of_a_phone_number_is_a_token():
    assert {len(s.target) for s in take(PhonebookData(), 500)} == {10}
    assert len(take(PhonebookData(), 505)) == 50


def test_unseen_pairs_are_never_among_the_samples():
    source = RuleData(maximum=9, test_samples=30).open(TINY)
    learnt = {s.prompt for s in source.take(source.max_tokens)}
    assert len(source.test_samples) == 30
    assert len(learnt) == 70
    assert not learnt & {s.prompt for s in source.test_samples}


# -- chat templates


def chat_folder(folder, template):
    """A model folder with a word tokenizer; the config is all that planning reads."""
    words = ["<s>", "<user>", "<bot>", "hello", "there", "[UNK]"]
    backend = Backend(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>", "<user>", "<bot>"])
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "unk_token": "[UNK]",
    }
    if template:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "vocab_size": 6,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return Model(name="chatty", path=str(folder))


TEMPLATE = (
    "<s> {% for m in messages %}"
    "{% if m['role'] == 'user' %}<user> {{ m['content'] }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def test_the_chat_template_goes_around_the_prompt(tmp_path):
    model = chat_folder(tmp_path, TEMPLATE)
    sample = only(RandomData(prompt="hello there", chat=True), 5, model)
    assert sample.prompt == (0, 1, 3, 4, 2)  # the begin-of-text token once
    assert set(sample.target) <= {3, 4, 5}
    path = jsonl(tmp_path, [{"query": "there", "target": "hello hello"}])
    assert only(JsonlData(path=path, chat=True), 2, model) == Sample(
        prompt=(0, 1, 4, 2), target=(3, 3)
    )
    assert only(JsonlData(path=path), 2, model) == Sample(prompt=(0, 4), target=(3, 3))


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    for model in (TINY, chat_folder(tmp_path, None)):
        with pytest.raises(UserError, match=r"data\.chat=true: .* no chat template"):
            RandomData(chat=True).open(model)


def test_a_chat_template_that_refuses_is_a_user_error(tmp_path):
    model = chat_folder(tmp_path, "{{ raise_exception('System role not supported') }}")
    with pytest.raises(UserError, match="System role not supported"):
        RandomData(chat=True).open(model)


def test_chat_prompts_of_a_whole_phonebook_read_the_tokenizer_once(tmp_path, monkeypatch):
    import transformers

    read, model = [], chat_folder(tmp_path, TEMPLATE)
    load = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda *a, **k: read.append(a) or load(*a, **k),
    )
    rows = [{"query": "hello", "target": "there"} for _ in range(40)]
    JsonlData(path=jsonl(tmp_path, rows), chat=True).open(model)
    assert len(read) == 1


def test_padding_and_truncation_that_were_saved_with_a_tokenizer_are_not_obeyed(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_FOLDER, pad_token="<|endoftext|>")
    tokenizer(["0123456789"], padding="max_length", max_length=24, truncation=True)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["padding"] and saved["truncation"]
    shutil.copy(TINY_FOLDER / "config.json", tmp_path)
    ours, plain = open_tokenizer(Model(path=str(tmp_path))), open_tokenizer(TINY)
    for text in ("0123456789", WORDS * 2):
        assert ours.encode(text) == plain.encode(text)


def narrow(folder, vocabulary):
    """The tiny tokenizer with a model that has embeddings for some of its tokens alone."""
    shutil.copy(TINY_FOLDER / "tokenizer.json", folder)
    shutil.copy(TINY_FOLDER / "tokenizer_config.json", folder)
    config = json.loads((TINY_FOLDER / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": vocabulary}))
    return Model(name="narrow", path=str(folder))


@pytest.mark.parametrize("data", [RandomData(), MixedData(path="text", random_share=1.0)])
def test_random_tokens_are_those_that_the_model_has_embeddings_for(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("0123456789" * 200)
    assert max(only(data, 1000, narrow(tmp_path, 100)).target) in range(90, 100)


@pytest.mark.parametrize(
    "data", [TextData(), PhonebookData(), RandomData(prompt=WORDS), MixedData()]
)
def test_tokens_that_the_model_has_no_embedding_for_are_refused(tmp_path, data):
    with pytest.raises(
        UserError,
        match=r"^model=narrow: its tokenizer gives id \d+ \('.+'\), the model has .* below 100$",
    ):
        data.open(narrow(tmp_path, 100))


def test_a_chat_template_with_a_token_that_the_model_has_no_embedding_for(tmp_path):
    model = chat_folder(tmp_path, TEMPLATE.replace("<bot>", "<late>"))
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_special_tokens(["<late>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"^model=chatty: its tokenizer gives id 6 \('<late>'\)"):
        RandomData(prompt="hello", chat=True).open(model)


def test_a_folder_without_a_tokenizer_allows_only_what_needs_none(model_folder):
    model = Model(name="bare", path=str(model_folder("gpt2")))
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        TextData().open(model)
    assert only(RandomData(), 9, model).prompt == (0,)
    assert set(only(RandomData(), 3000, model).target) == set(range(1, 101))


# -- lengths


def test_lengths_beyond_the_source_and_the_context(text_file):
    source = TextData(path=text_file).open(TINY)
    check_length(TINY, TextData(path=text_file), source, source.max_tokens)
    with pytest.raises(UserError, match=f"has only {source.max_tokens} target tokens"):
        check_length(TINY, TextData(path=text_file), source, source.max_tokens + 1)
    endless = RandomData().open(TINY)
    check_length(TINY, RandomData(), endless, 8191)
    for seqlen in (8192, 8193, 10_000_000):
        with pytest.raises(UserError, match=f"^seqlen={seqlen}: .*8192"):
            check_length(TINY, RandomData(), endless, seqlen)


def test_of_one_token_there_is_one_token():
    source = Source(cut=lambda seqlen: [], max_tokens=1, min_tokens=1, sample_ends=[1])
    with pytest.raises(UserError, match=r"^seqlen=0: the first sample alone has 1 target token; "):
        source.take(0)
    with pytest.raises(UserError, match=r"takes 1 sample \(1 token\)$"):
        source.take(0)
    with pytest.raises(UserError, match=r"this source has only 1 target token$"):
        source.take(2)


# -- what is scored


def test_prompt_tokens_are_never_scored_and_every_target_token_is():
    samples = take(PhonebookData(), 50)
    other = [Sample(prompt=(9, 9, 9), target=(1, 2))]
    data = PackData([samples, other], torch.device("cpu"))
    layout = data.layout(data.cells)
    assert layout.targets.tolist() == [t for s in [*samples, *other] for t in s.target]
    rows_per_cell = len(samples)
    start = 0
    for k, cell in enumerate((samples, other)):
        for j, sample in enumerate(cell):
            batch_row = k * rows_per_cell + j
            end = start + len(sample.target)
            positions = layout.scored[start:end] - batch_row * layout.tokens
            start = end

            # From the one that predicts the first target token on.
            first = len(sample.prompt) - 1
            assert positions.tolist() == list(range(first, first + len(sample.target)))

            row = data.ids[layout.rows[batch_row]]
            assert row[positions + 1].tolist() == list(sample.target)
            assert tuple(row[: len(sample.prompt)].tolist()) == sample.prompt
    assert layout.mask_KS.sum(1).tolist() == [50, 2]
    laid = layout.by_cell(torch.ones(52))
    assert torch.equal(laid, layout.mask_KS.to(laid.dtype))


def test_lengths_share_the_longest_row():
    source = RandomData().open(TINY)
    data = PackData([source.take(n) for n in (7, 30, 12)], torch.device("cpu"))
    assert data.ids.shape == (1, 31)
    assert [data.input_tokens(k) for k in range(3)] == [7, 30, 12]


def test_same_target_after_another_prompt_has_its_own_row():
    cells = [
        [
            Sample(prompt=(1,), target=(5, 6)),
            Sample(prompt=(2,), target=(5, 6)),
            Sample(prompt=(1,), target=(5,)),
            Sample(prompt=(1,), target=(5, 7)),
        ]
    ]
    assert len(PackData(cells, torch.device("cpu")).rows) == 3


def test_minibatches_see_every_sample_once_an_epoch_in_a_new_order():
    order = SampleOrder(10, 4, seed=3)
    epochs = [[order.next() for _ in range(-(-order.samples // order.batch))] for _ in range(3)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    flat = [[i for batch in epoch for i in batch] for epoch in epochs]
    assert all(sorted(f) == list(range(10)) for f in flat)
    assert flat[0] != flat[1]
    assert SampleOrder(10, 4, seed=3).next() == epochs[0][0]
    assert SampleOrder(10, 4, seed=4).next() != epochs[0][0]
    assert SampleOrder(3, 0, 0).is_full_batch
    assert SampleOrder(3, 5, 0).is_full_batch
    assert not SampleOrder(3, 2, 0).is_full_batch
