"""Samples laid into rows: none is cut, none overlaps, and little is left empty."""

import numpy as np
import pytest
from support.facts import fact_samples
from support.families import GPT2

from pml_cli.config.schema import MlpBlockAdapter, Model, Run
from pml_cli.data.opened import packed_size_of
from pml_cli.data.row_packing import (
    RowShape,
    common_beginning,
    fill_rows,
    packed_size,
    shape_of_cells,
)
from pml_cli.data.source import Sample


def sample(prompt, target=3, beginning=()):
    return Sample(prompt=(*beginning, *range(10, 10 + prompt)), target=tuple(range(target)))


@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_whole_samples_and_are_mostly_full(seed):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(5, 60, size=200)
    scored = np.minimum(lengths, draw.integers(1, 20, size=200))
    shape = RowShape(common=7, tokens=96)
    placement = fill_rows(lengths, scored, shape)

    taken = np.zeros((placement.count, shape.tokens), int)
    for row, offset, length in zip(placement.rows, placement.offsets, lengths, strict=True):
        taken[row, offset : offset + length] += 1
    assert taken[:, : shape.common].max() == 0
    assert taken.max() == 1
    assert taken.sum() == lengths.sum()
    assert taken[:, shape.common :].mean() > 0.8

    # No row has many more scored tokens than the mean: all are padded to the most.
    of_rows = np.bincount(placement.rows, scored)
    assert of_rows.max() <= 1.2 * scored.sum() / placement.count + 20


def test_what_all_prompts_begin_with():
    beginning = (1, 2, 3)
    samples = [sample(4, beginning=beginning), sample(2, beginning=(*beginning, 5))]
    assert common_beginning(samples) == 3
    # The last token of a prompt predicts: it is the sample's own.
    assert common_beginning([sample(4), sample(4, target=5)]) == 3
    assert common_beginning([sample(1), sample(9)]) == 0


def test_rows_are_packed_where_that_saves_work():
    short = [sample(length) for length in range(5, 60)]
    shape = shape_of_cells([short, short[:20]])
    assert shape.tokens >= 61
    assert shape.common == 4

    # One sample a cell, or samples of one length that are targets all over.
    assert shape_of_cells([short[:1], short[1:2]]) is None
    running_text = [sample(2, target=60 + k) for k in range(3)]
    assert shape_of_cells([running_text]) is None


def test_the_rows_of_a_step():
    samples = [sample(length, target=4) for length in range(5, 60)]
    # Prompt and target of the longest have 63 tokens, and the last is no input.
    one = packed_size(samples, 1)
    assert (one.rows, one.tokens, one.queries) == (1, 62, 4)

    # Four tokens come once a row of at most 96; each sample has 31 of its own in the mean.
    for batch in (10, len(samples)):
        size = packed_size(samples, batch)
        assert batch * 31 / 92 <= size.rows <= 1.5 * batch * 31 / 92
        assert 92 <= size.tokens <= 96
    assert packed_size(samples[:1], 1) is None


def test_what_the_planner_prices_as_packed(tmp_path):
    facts = [(f"Who is in room {n}?" + " Say it." * (n % 4), "Ilse") for n in range(12)]

    def size(model_type, **adapter):
        fields = GPT2 | {"model_type": model_type, "vocab_size": 2048}
        model = Model(name="m", weights="random", architecture=fields, device="cpu")
        samples, data = fact_samples(model, facts, tmp_path)
        seqlen = sum(len(sample.target) for sample in samples)
        run = Run(model=model, data=data, seqlen=seqlen, adapter=MlpBlockAdapter(**adapter))
        return packed_size_of(run, len(samples))

    assert size("gpt2").rows < len(facts) / 2
    assert size("gpt2", dropout=0.1) is None
    # Its layers add biases of their own making.
    assert size("bloom") is None
