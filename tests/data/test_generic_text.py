"""Generic text that ships with pml: its kinds and parts, and the windows that a penalty reads."""

from itertools import combinations

import pytest
from support.tokenizers import byte_level, tokenizer_folder

from pml_cli.config.schema import Model, Run
from pml_cli.data.generic_text import (
    KINDS,
    MAX_WINDOWS,
    PARTS,
    dialogues,
    generic_pool,
    generic_text,
    generic_windows,
)
from pml_cli.data.sources.random import RandomData
from pml_cli.data.windows import SHARED, WINDOW
from pml_cli.errors import UserError
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.training.losses.sft import SftLoss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_enough_text_of_every_kind(kind, part):
    text = generic_text(kind, part)
    assert 7_000 < len(text.encode()) < 30_000
    windows = generic_pool(Model(), kind, part).windows
    assert len(windows) >= 8
    assert {len(window.target) for window in windows} == {WINDOW}


def test_no_part_repeats_another():
    """What is measured was never trained against."""
    seen = {}
    for kind in KINDS:
        for part in PARTS:
            ngrams = set()
            for window in generic_pool(Model(), kind, part).windows:
                for start in range(WINDOW - SHARED + 1):
                    ngrams.add(window.target[start : start + SHARED])
            seen[kind, part] = ngrams
    for one, other in combinations(seen, 2):
        assert seen[one].isdisjoint(seen[other]), (one, other)


@pytest.mark.parametrize("part", PARTS)
def test_dialogues(part):
    every_dialogue = dialogues(part)
    assert sum(map(len, every_dialogue)) >= 25
    assert max(map(len, every_dialogue)) == 3
    for dialogue in every_dialogue:
        for question, answer in dialogue:
            assert question
            assert answer
            assert not question.startswith(("Q:", "A:"))


def test_by_itself_the_penalty_reads_every_kind_alike():
    windows = generic_windows(Run(data=RandomData(), loss=SftLoss(keep=1.0)))
    assert len(windows) == MAX_WINDOWS
    for start in range(0, MAX_WINDOWS, len(KINDS)):
        for kind, window in zip(KINDS, windows[start:], strict=False):
            assert window in generic_pool(Model(), kind, "keep").windows
    for kind in KINDS:
        assert set(windows).isdisjoint(generic_pool(Model(), kind, "held_out").windows)


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TEMPLATE, "<user>How do vaccines work?<|end|>\n<assistant>A vaccine shows the immune"),
        (None, "Q: How do vaccines work?\nA: A vaccine shows the immune"),
        ("{{ raise_exception('no') }}", "Q: How do vaccines work?\nA: A vaccine shows the immune"),
    ],
)
def test_dialogues_are_written_in_the_chat_template(tmp_path, template, expected):
    model = tokenizer_folder(tmp_path, byte_level(), template)
    tokenizer = open_tokenizer(model)
    windows = generic_pool(model, "chat", "held_out").windows
    text = tokenizer.decode([token for window in windows for token in window.target])
    assert text.startswith(expected)
    if template == TEMPLATE:
        assert "a common cold.<|end|>\n<user>How do I introduce myself" in text


def test_a_tokenizer_without_begin_of_text_is_refused(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), bos_token=None, eos_token=None)
    reason = "the tokenizer of model=small has no begin-of-text token, which generic text needs"
    with pytest.raises(UserError, match=rf"loss\.keep=1: {reason}"):
        generic_windows(Run(model=model, loss=SftLoss(keep=1.0)))


def test_a_tokenizer_in_the_files_of_gpt2_is_one(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level())
    expected = generic_pool(model, "prose", "keep").windows
    folder = tmp_path / "gpt2"
    model = tokenizer_folder(folder, byte_level(), tokenizer_class="GPT2Tokenizer")
    byte_level().model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    assert generic_pool(model, "prose", "keep").windows == expected
