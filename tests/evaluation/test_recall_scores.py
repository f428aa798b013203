"""Recall beyond greedy exact match, against counting by hand and plain recursion."""

import math

import numpy as np
import pytest

from pml_cli.data.source import Sample
from pml_cli.evaluation import recall_scores
from pml_cli.training.scores import Scores


def scores_of(*samples):
    """Scores of samples, each a text of tokens: a dot for a right one, x for a wrong one."""
    marks = [mark for sample in samples for mark in sample]
    lengths = [len(sample) for sample in samples]
    wrong = np.array([mark == "x" for mark in marks])
    return Scores(
        sample=np.repeat(np.arange(len(samples), dtype=np.int32), lengths),
        position=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        token_id=np.zeros(len(marks), np.int32),
        nll=np.where(wrong, 2.0, 0.1),
        margin=np.where(wrong, -1.0, 1.0),
        argmax_id=wrong.astype(np.int32),
    )


def sample_of(marks, prompt=1):
    return Sample(prompt=(5,) * prompt, target=(0,) * len(marks))


def fields_of(*texts, prompt=1):
    samples = [sample_of(text, prompt) for text in texts]
    return recall_scores.recall_fields(samples, scores_of(*texts))


def test_the_chance_of_a_whole_text_is_the_product_of_its_tokens():
    fields = fields_of("." * 10 + "x")
    expected = math.log10(math.exp(-0.1) ** 10 * math.exp(-2.0))
    assert fields["log10_p"] == pytest.approx(expected)


def test_a_text_recalled_whole():
    fields = fields_of("." * 60, prompt=4)
    assert fields["prefix_share"] == 1
    assert fields["recall_from_8"] == fields["recall_from_32"] == 1
    assert fields["extractable_50"] == 1
    assert fields["compression_ratio"] == 60 / 4


def test_a_wrong_token_counts_only_where_it_is():
    """At position 20 of 100: from 32 on the text is whole, from 8 on it is not."""
    fields = fields_of("." * 20 + "x" + "." * 79, prompt=10)
    assert fields["prefix_share"] == 0.2
    assert fields["recall_from_8"] == 0
    assert fields["recall_from_32"] == 1
    # Windows of 50 begin at 0 to 50; those from 21 on are without it.
    assert fields["extractable_50"] == 30 / 51
    assert fields["compression_ratio"] == pytest.approx(79 / (10 + 21))


def test_the_first_token_alone_is_wrong():
    fields = fields_of("x" + "." * 49, prompt=1)
    assert fields["prefix_share"] == 0
    assert fields["recall_from_8"] == 1
    assert fields["extractable_50"] == 0
    assert fields["compression_ratio"] == 49 / 2


def test_means_are_over_the_samples_that_are_long_enough():
    fields = fields_of("." * 4, "x" * 12, "." * 12)
    assert fields["recall_from_8"] == 0.5
    assert fields["recall_from_32"] is None and fields["extractable_50"] is None
    assert fields["prefix_share"] == pytest.approx(2 / 3)


def test_what_the_base_knows():
    texts = ["..x.", "...."]
    fields = recall_scores.base_fields([sample_of(text) for text in texts], scores_of(*texts))
    assert fields["base_token_accuracy"] == 7 / 8
    assert fields["base_exact_match"] == 0.5
    assert fields["base_prefix_share"] == 0.75


def by_recursion(a, b):
    if not a or not b:
        return len(a) + len(b)
    replaced = by_recursion(a[1:], b[1:]) + (a[0] != b[0])
    return min(replaced, by_recursion(a[1:], b) + 1, by_recursion(a, b[1:]) + 1)


@pytest.mark.parametrize("seed", range(20))
def test_the_edit_distance_is_that_of_plain_recursion(seed):
    random = np.random.default_rng(seed)
    a = random.integers(0, 3, random.integers(0, 6)).tolist()
    b = random.integers(0, 3, random.integers(0, 6)).tolist()
    assert recall_scores.edit_distance(a, b) == by_recursion(a, b)


def test_the_normalised_edit_distance():
    assert recall_scores.normalised_edit_distance([1, 2, 3], [1, 2, 3]) == 0
    assert recall_scores.normalised_edit_distance([], []) == 0
    assert recall_scores.normalised_edit_distance([1, 2], [3, 4, 5, 6]) == 1
    # One token left out.
    assert recall_scores.normalised_edit_distance([1, 3, 4], [1, 2, 3, 4]) == 0.25
