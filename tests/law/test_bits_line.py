"""Parameters against bits: planted lines, one for all groups or one each."""

import math

import numpy as np
import pandas as pd
import pytest

from pml_cli.io import jsonable
from pml_cli.law import law_json
from pml_cli.law.bits_line import fit_line, threshold_points
from pml_cli.law.half_recall import BELOW, WITHIN
from pml_cli.law.inverse import new_model
from pml_cli.report.tables.bits_line import new_model_lines

LENGTHS = (24, 48, 96, 192)


def points(factors, exponents=(0.78,), texts=4, noise=0.05, seed=0):
    """Thresholds of groups that lie off 9 bits^s by a factor each, and of texts by their own."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, factor in enumerate(factors):
        exponent = exponents[index % len(exponents)]
        for text in range(texts):
            of_text = noise * rng.standard_normal()
            for length in LENGTHS:
                bits = 11.0 * length
                log_parameters = math.log(9 * factor * 1000**0.78) + exponent * math.log(
                    bits / 1000
                )
                rows.append(
                    {
                        "group": f"group {index}",
                        "text": f"{index}/{text}",
                        "length": length,
                        "bits": bits,
                        "parameters": math.exp(log_parameters + of_text),
                        "log_step": 0.1,
                        "outside": WITHIN,
                    }
                )
    return pd.DataFrame(rows)


def test_one_line_is_recovered_and_not_refuted():
    line = fit_line("sft", points([1.0] * 4))
    assert line.s == pytest.approx(0.78, abs=0.02) and line.s_low < 0.78 < line.s_high
    assert line.c == pytest.approx(9, rel=0.15)
    assert line.same_level_p > 0.05 and line.same_exponent_p > 0.05 and line.close == 4
    value, low, high = line.parameters(2000.0)
    assert value == pytest.approx(9 * 2000**0.78, rel=0.1) and low < value < high < 1.3 * value


def test_groups_off_the_line_and_exponents_of_their_own_are_refuted():
    line = fit_line("sft", points([1.0, 1.0, 1.0, 2.0]))
    assert line.same_level_p < 1e-3 < 0.05 < line.same_exponent_p
    assert line.groups[3].low > 1.2 and line.groups[0].high < 1
    steeper = fit_line("sft", points([1.0] * 4, exponents=(0.6, 0.9)))
    assert steeper.same_exponent_p < 1e-3


def test_one_height_is_refuted_as_rarely_as_it_says():
    p = [
        fit_line("sft", points([1.0] * 3, noise=0.3, seed=seed)).same_level_p for seed in range(40)
    ]
    assert np.mean(np.array(p) < 0.05) <= 0.15


def test_a_new_group_lies_within_the_spread_of_the_others():
    """The band holds the factor of a group that was left out, 95 times in a hundred."""
    rng = np.random.default_rng(0)
    held = []
    for seed in range(40):
        factors = np.exp(0.2 * rng.standard_normal(6))
        line = fit_line("sft", points(factors[:5], seed=seed))
        _, low, high = line.parameters(1000.0)
        held.append(low <= 9 * factors[5] * 1000**0.78 <= high)
    assert np.mean(held) >= 0.88


def test_the_line_of_one_text_has_no_interval_and_no_band(tmp_path):
    one_text = points([1.0, 1.2], texts=1, noise=0).assign(text="a")
    line = fit_line("sft", one_text)
    assert line.texts == 1 and line.s == pytest.approx(0.78)
    assert math.isnan(line.s_low) and math.isnan(line.s_high)

    value, low, high = line.parameters(1000.0)
    assert value == pytest.approx(9 * math.sqrt(1.2) * 1000**0.78)
    assert math.isnan(low) and math.isnan(high)

    # As it is read again from law.json, where what is not finite is null.
    stored = law_json._bits_line(jsonable(line))
    answer = new_model(stored, 512.0, [100.0], 11.0)
    text = " ".join(new_model_lines(stored, answer))
    assert "(no band)" in text and "one text: no band" in text
    assert stored.texts == 1 and math.isnan(stored.s_low)


def test_a_group_without_a_threshold_leaves_the_others_their_numbers():
    """Its table has no rows, and so no types of its own."""
    columns = ["data_seed", "target_tokens", "effective_parameters", "exact_match"]
    empty = threshold_points("none", pd.DataFrame(columns=columns))
    joined = pd.concat([empty, empty], ignore_index=True)
    assert all(joined[name].dtype == float for name in ("length", "bits", "parameters"))


def test_bits_are_those_of_the_shorter_code_and_thresholds_beyond_the_ranks_are_left_out():
    """Random tokens have ln V nats, where the base model needs more; real text has those of it."""
    rows = [
        {
            "model": "tiny",
            "data": data,
            "data_seed": 0,
            "target_tokens": length,
            "effective_parameters": 256 * rank,
            "exact_match": float(rank >= length / 16),
            "base_loss": base,
            "source_nats": nats,
        }
        for data, base, nats in (("random", 11.0, math.log(2048)), ("text", 4.0, math.nan))
        for length in (8, 32)
        for rank in (1, 2, 4)
    ]
    cells = pd.DataFrame(rows)
    found = threshold_points("a", cells[cells["data"] == "random"])
    assert found["bits"].tolist() == pytest.approx([88.0, 352.0])
    assert found["outside"].tolist() == [BELOW, WITHIN]
    assert found["parameters"].tolist()[1] == pytest.approx(256 * 2**0.5)
    text = threshold_points("b", cells[cells["data"] == "text"])
    assert text["bits"].tolist()[1] == pytest.approx(32 * 4 / math.log(2))
    # One length is left of each, of other bits: enough for a line, not for exponents.
    line = fit_line("sft", pd.concat([found, text]))
    assert line.outside == 2 and math.isnan(line.same_exponent_p)
    assert fit_line("sft", found) is None
