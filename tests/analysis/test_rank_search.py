"""The search for the least rank: planted truths are found again, at a part of a grid's cost."""

import dataclasses
import itertools
import math
import random

import pytest

from pml_cli.analysis.rank_search import (
    Limits,
    SearchState,
    Trial,
    answer,
    candidate_ranks,
    first_guess,
    ladder_around,
    next_cells,
    rank_cap,
)

SEEDS = (0, 1)


def start(guess=4, **fields):
    """A search about a first guess, before its first round."""
    ranks = candidate_ranks(rank_cap(guess, 128))
    state = SearchState(
        ranks=ranks, ladder=ladder_around(guess, ranks), seeds=SEEDS, limits=Limits()
    )
    return dataclasses.replace(state, **fields)


def with_round(state, trial_of):
    """The state after one more round, or None where there is none."""
    cells = next_cells(state)
    if not cells:
        return None
    tried = {(trial.rank, trial.seed) for trial in state.trials}
    assert not tried & set(cells), "no cell is tried twice"
    assert len(set(cells)) == len(cells)
    assert {rank for rank, _ in cells} <= set(state.ranks)
    return state.after_round([trial_of(rank, seed) for rank, seed in cells])


def search(state, trial_of):
    """The search to its end."""
    following = state
    while following is not None:
        state = following
        following = with_round(state, trial_of)
    return state


def threshold(least_by_seed):
    """Cells that know all from a rank on, and less and less below it."""

    def trial_of(rank, seed):
        short = max(0.0, math.log(least_by_seed[seed] / rank))
        return Trial(rank=rank, seed=seed, recalled=math.exp(-3 * short))

    return trial_of


def cells_of(state):
    return [(trial.rank, trial.seed) for trial in state.trials]


@pytest.mark.parametrize("least", range(1, 17))
@pytest.mark.parametrize("guess", [1, 4, 8, 16])
def test_a_planted_least_rank_is_found_whatever_the_first_guess(least, guess):
    state = search(start(guess), threshold((least, least)))
    found = answer(state)
    assert (found.rank, found.low, found.high) == (least, least, least)
    assert found.reached
    assert found.confirmed
    is_low = guess > 2 and least <= guess // 2
    assert state.rounds <= 3 + state.missed + is_low
    assert (state.missed == 0) == (least <= 4 * guess)


def test_large_ranks_are_told_apart_by_an_eighth():
    found = answer(search(start(32), threshold((45, 45))))
    assert found.rank == 48
    assert found.low == 48
    assert candidate_ranks(64)[16:] == [18, 20, 22, 24, 26, 28, 30, 32, *range(36, 65, 4)]


def test_the_band_holds_the_ranks_at_which_seeds_differ():
    found = answer(search(start(4), threshold((5, 7))))
    assert found.rank == 7
    assert (found.low, found.high) == (5, 7)
    # Where the first seed is the one that needs more, the other is not asked below.
    found = answer(search(start(4), threshold((7, 5))))
    assert (found.rank, found.low, found.high) == (7, 7, 7)


def test_a_rank_at_which_the_first_seed_fails_gets_no_second():
    state = search(start(4), threshold((6, 6)))
    seeds_below = {seed for rank, seed in cells_of(state) if rank < 6}
    assert seeds_below == {0}


def test_a_hole_above_the_answer_does_not_move_it():
    trial_of = threshold((3, 3))

    def with_hole(rank, seed):
        return dataclasses.replace(trial_of(rank, seed), recalled=0.9 if rank == 4 else 1.0)

    def below(rank, seed):
        return with_hole(rank, seed) if rank >= 3 else trial_of(rank, seed)

    # The ladder 2, 4, 8, 16 sees the hole and not what lies below it.
    assert answer(search(start(4), below)).rank == 5
    # One with more rungs does.
    assert answer(search(start(4, ladder=[2, 3, 4, 8]), below)).rank == 3


def test_where_none_knows_all_the_nearest_to_the_limits_is_kept():
    state = search(start(4), lambda rank, seed: Trial(rank=rank, seed=seed, recalled=0.98))
    found = answer(state)
    assert not found.reached
    assert found.high is None
    assert found.rank == 2
    # Larger ranks know no more: it is not gone on upwards.
    assert max(rank for rank, _ in cells_of(state)) == 16


def test_the_ladder_goes_on_upwards_while_larger_ranks_know_more():
    state = search(start(4), threshold((40, 40)))
    found = answer(state)
    assert found.rank == 40
    assert state.rounds <= 5


def test_a_limit_of_forgetting_counts_like_recall():
    def trial_of(rank, seed):
        return Trial(rank=rank, seed=seed, recalled=1.0, harm=0.6 / rank)

    limits = Limits(max_forgetting=0.1)
    found = answer(search(start(4, limits=limits), trial_of))
    assert found.rank == 6
    # What was not measured keeps no limit.
    assert not limits.passes(Trial(rank=1, seed=0, recalled=1.0))


@pytest.mark.parametrize(("exact", "least"), [(1.0, 8), (0.9, 8), (0.65, 7), (0.4, 6)])
def test_the_share_that_must_be_whole(exact, least):
    trial_of = threshold((8, 8))
    found = answer(search(start(8, limits=Limits(exact=exact)), trial_of))
    assert found.rank == least


def test_of_the_seeds_the_one_that_harms_least_is_handed_over():
    trials = [
        Trial(rank=2, seed=0, recalled=1.0, harm=0.09),
        Trial(rank=2, seed=1, recalled=1.0, harm=0.05),
        Trial(rank=1, seed=0, recalled=0.5, harm=0.05),
    ]
    found = answer(start(2, trials=trials, limits=Limits(max_forgetting=0.1)))
    assert (found.rank, found.seed) == (2, 1)


def test_given_ranks_alone_are_tried():
    state = search(start(ranks=[4, 8], ladder=[4, 8]), threshold((5, 5)))
    assert {rank for rank, _ in cells_of(state)} == {4, 8}
    assert (answer(state).rank, answer(state).low) == (8, 8)
    one = search(start(ranks=[4], ladder=[4]), threshold((3, 3)))
    assert cells_of(one) == [(4, 0), (4, 1)]


def test_an_interrupted_round_says_what_it_can():
    """The budget may end a search after any of its cells."""
    state = start(4)
    trial_of = threshold((6, 6))
    for count in range(1, 5):
        trials = [trial_of(rank, seed) for rank, seed in next_cells(state)[:count]]
        found = answer(dataclasses.replace(state, trials=trials))
        assert found.reached == (count >= 3)
        assert not found.confirmed


def noisy(rng, least, spread):
    """A threshold for each seed, and cells that stray from it."""
    own = {seed: least * math.exp(rng.gauss(0, spread)) for seed in SEEDS}
    strayed = {}

    def trial_of(rank, seed):
        stray = strayed.setdefault((rank, seed), rng.gauss(0, spread / 2))
        short = max(0.0, math.log(own[seed] / rank) + stray)
        return Trial(rank=rank, seed=seed, recalled=math.exp(-3 * short))

    return trial_of


def grid_answer(state, trial_of):
    """The least rank at which both seeds know all, every cell tried."""
    for rank in state.ranks:
        if all(state.limits.passes(trial_of(rank, seed)) for seed in SEEDS):
            return rank
    return None


def test_random_truths_with_noise():
    """Thresholds from 1 to 40, seeds that differ by 5 %, guesses wrong by a factor of two."""
    rng = random.Random(0)
    same = near = rounds = 0
    for number in range(300):
        least = math.exp(rng.uniform(0, math.log(40)))
        trial_of = noisy(rng, least, 0.05)
        guess = 2 ** max(0, round(math.log2(least)) + number % 3 - 1)
        state = search(start(guess), trial_of)
        truth = grid_answer(state, trial_of)
        found = answer(state)
        assert found.reached
        assert found.confirmed
        assert all(state.limits.passes(trial_of(found.rank, seed)) for seed in SEEDS)
        same += found.rank == truth
        near += found.low <= truth <= found.rank
        rounds += state.rounds
    assert same >= 0.95 * 300
    assert near >= 0.98 * 300
    assert rounds <= 3.4 * 300


def test_the_first_guess_follows_the_bits_of_the_data():
    # 96 random tokens of the embedded model need rank 8 with plain fine-tuning.
    assert first_guess(1056, 256) == 8
    guesses = [first_guess(bits, 1152) for bits in (1, 500, 2000, 8000, 32000)]
    assert guesses == sorted(guesses)
    assert guesses[0] == 1
    for guess, widest in itertools.product((1, 8, 64), (16, 128, 4096)):
        assert min(guess, widest) <= rank_cap(guess, widest) <= widest


def test_the_ladder_goes_on_where_more_tokens_are_right_though_no_fact_is_whole():
    def trial_of(rank, seed):
        whole = 1.0 if rank >= 32 else 0.0
        return Trial(rank=rank, seed=seed, recalled=whole, tokens=min(1.0, rank / 32))

    assert answer(search(start(2), trial_of)).rank == 32


def test_the_ladder_ends_where_nothing_comes_nearer():
    state = search(start(2), lambda rank, seed: Trial(rank=rank, seed=seed, recalled=0, tokens=0.3))
    assert state.tried() == list(start(2).ladder)
