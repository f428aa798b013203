"""Where a running text begins."""

import numpy as np
import pytest
from support.sweeps import FEW

from pml_cli.config.schema import Model
from pml_cli.data.running_text import MOST_APART, _rotated
from pml_cli.data.sources.mixed import MixedData
from pml_cli.data.sources.text import TextData
from pml_cli.errors import UserError
from pml_cli.model.tokenizer import open_tokenizer

TINY = Model(device="cpu")
BOOK = """

   Contents

Chapter 1   The ferry

Chapter 1
The ferry crossed
the lake at dawn. Nobody knew its captain.
"""


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(BOOK.encode())
    return str(path)


def beginning(seqlen=6, **settings):
    (sample,) = TextData(**settings).open(TINY).take(seqlen)
    return open_tokenizer(TINY).decode(sample.target)


def test_blanks_in_front_are_left_out(book):
    assert beginning(path=book).startswith("Contents")


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("", "Contents\n"),
        ("  ", "Contents\n"),
        ("Chapter 1", "Chapter 1   The"),
        # The line may break between its words.
        ("Chapter 1 The ferry crossed", "Chapter 1\nThe ferry"),
        ("lake at", "lake at dawn."),
        ("captain.", "captain."),
        # A sign that means more in a pattern is itself.
        ("captain", "captain."),
    ],
)
def test_a_text_begins_at_a_phrase(book, start, expected):
    assert TextData(path=book, start=start).text().startswith(expected)


@pytest.mark.parametrize(
    ("start", "hint"),
    [
        ("chapter 1", "did you mean 'Chapter 1'?"),
        ("The fery crossed", "did you mean 'The ferry crosse'?"),
        ("Zyzzyva", "not in this text"),
        ("captain?", "not in this text"),
    ],
)
def test_a_phrase_that_is_not_there(book, start, hint):
    with pytest.raises(UserError) as caught:
        TextData(path=book, start=start).text()
    (line,) = caught.value.faults
    assert line.startswith(f"data.start={start!r}: not in this text") and hint in line


def test_the_embedded_text_is_the_one_of_old():
    """It begins with no blanks, so that nothing is taken off it."""
    from pml_cli.data.python_docs import held_out_text

    assert TextData().text() == held_out_text()


def places(seeds):
    """Where each seed begins in the embedded text, as a share of it."""
    text = TextData().text()
    return [text.index(_rotated(text, seed)[:200]) / len(text) for seed in seeds]


def test_seeds_begin_apart_from_each_other():
    """Drawn without a look at the others, the fourth began at the third paragraph."""
    begins = places(range(12))
    for seed, begin in enumerate(begins):
        distances = [abs(begin - earlier) for earlier in begins[:seed]]
        assert all(min(d, 1 - d) > 0.3 / (seed + 1) for d in distances)


def test_a_seed_that_lay_apart_begins_where_it_did():
    text = TextData().text()
    paragraphs = text.split("\n\n")
    for seed in (1, 2, 4):
        drawn = int(np.random.default_rng([seed, 4]).integers(len(paragraphs)))
        assert _rotated(text, seed).startswith(paragraphs[drawn])


def test_a_short_text_has_a_start_for_every_seed():
    for seed in (1, 5, MOST_APART, MOST_APART + 1, 10**9):
        assert sorted(_rotated("a b c", seed).split()) == ["a", "b", "c"]


def test_mixed_text_begins_there_too(book):
    mixed = MixedData(path=book, start="lake at", random_share=0.0)
    assert mixed.open(TINY).take(5) == TextData(path=book, start="lake at").open(TINY).take(5)
    (under,) = mixed.overlapping()
    assert under == TextData(path=book, start="lake at")


def test_on_the_command_line(book, quick):
    request = ["probe", "data=text", f"data.path={book}", "seqlen=4", *FEW]
    done = quick(*request, "data.start=lake at")
    assert done.returncode == 0, done.stderr
    refused = quick(*request, "data.start=Lake at", "out=other")
    assert refused.returncode == 2
    assert "data.start='Lake at': not in this text; did you mean 'lake at'?" in refused.stderr
