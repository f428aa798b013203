"""Planted repeats: copies, and prompts with targets that exclude each other."""

from pml_cli.data.repeats import find_repeats
from pml_cli.data.source import Sample


def sample(prompt, target, end=0):
    return Sample(prompt=tuple(prompt), target=tuple(target), end=end)


def test_distinct_samples_have_none():
    samples = [sample([1], [2, 3]), sample([2], [2, 3]), sample([1, 2], [3])]
    repeats = find_repeats(samples)
    assert repeats.copies == []
    assert repeats.contradictions == []


def test_copies_are_counted_each_time():
    first, other = sample([1], [2, 3]), sample([2], [2])
    repeats = find_repeats([first, other, first, first])
    assert repeats.copies == [first, first]
    assert repeats.contradictions == []
    assert repeats.excluded == 0


def test_one_pair_for_each_prompt_with_two_targets():
    paris, lyon, nice = (sample([1], [target, 9], end=1) for target in (3, 4, 5))
    rome = sample([2], [6, 9], end=1)
    repeats = find_repeats([rome, paris, lyon, paris, nice])
    assert repeats.copies == [paris]
    ((first, second),) = repeats.contradictions
    assert first == paris
    assert second in (lyon, nice)
    # Paris, which is there twice, may be recalled; Lyon and Nice cannot be then.
    assert repeats.excluded == 2


def test_a_beginning_is_no_contradiction_unless_it_ends():
    whole, cut = sample([1], [3, 4, 5]), sample([1], [3, 4])
    assert find_repeats([whole, cut]).contradictions == []
    assert find_repeats([whole, cut]).excluded == 0
    ended = sample([1], [3, 9], end=1)
    assert find_repeats([whole, cut, ended]).excluded == 1
    assert find_repeats([whole, cut, ended]).contradictions == [(whole, ended)]
