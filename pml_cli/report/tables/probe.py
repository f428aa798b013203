"""One run in words and numbers, for a reader who has not met the terms."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from pml_cli.format import counted, percent
from pml_cli.report.tables.layout import key_value_table

# Fields of result.json that the sentences below are about.
NEEDED = (
    "rank",
    "trainable_parameters",
    "target_tokens",
    "base_loss",
    "final_loss",
    "delta_loss",
    "bits_gained",
    "token_accuracy",
    "exact_match",
    "share_above_threshold",
    "steps_run",
    "seconds",
)


def missing_fields(result: dict[str, Any]) -> list[str]:
    """What `probe_table` needs and a result lacks; a whole one lacks nothing."""
    return [name for name in NEEDED if not _has(result, name)]


def probe_table(result: dict[str, Any]) -> RenderableType:
    """The result of one run: a verdict, and what was measured, in full sentences.

    Args:
        result: the fields of result.json.
    """
    rows = [
        ("what", _task(result)),
        ("loss", _loss(result)),
        ("a token", _probability(result)),
        ("stored", _bits(result)),
        ("guided", _teacher_forced(result)),
        ("alone", _free_running(result)),
        ("threshold", _threshold(result)),
        ("work", _work(result)),
    ]
    return Group(Text(_verdict(result), style="bold"), key_value_table(rows))


def _verdict(result: dict[str, Any]) -> str:
    samples = int(result.get("samples") or 1)
    exact_match = result["exact_match"]
    if exact_match == 1:
        return "Remembered: every token, in order."

    # Over several samples there is no one position of the first failure.
    if samples > 1:
        if exact_match == 0:
            return f"Not one of {samples:,} samples is remembered exactly."
        return f"Remembered in part: {percent(exact_match)} % of {samples:,} samples exactly."

    position = int(result["first_failure"] or 0)
    length = int(result["target_tokens"])
    return (
        f"Not remembered exactly: the first wrong token is at position {position:,} of {length:,}."
    )


def _task(result: dict[str, Any]) -> str:
    samples = int(result.get("samples") or 1)
    task = (
        f"rank {result['rank']}, {result['trainable_parameters']:,} trained parameters, "
        f"{counted(int(result['target_tokens']), 'token', spec=',')} to remember"
    )
    return f"{task} in {samples:,} samples" if samples > 1 else task


def _loss(result: dict[str, Any]) -> str:
    return (
        f"{result['base_loss']:.3f} before, {result['final_loss']:.3f} after: "
        f"gain {result['delta_loss']:.3f} nats per token"
    )


def _probability(result: dict[str, Any]) -> str:
    # exp of a mean log probability is the geometric mean of the probabilities.
    base = percent(math.exp(-result["base_loss"]))
    final = percent(math.exp(-result["final_loss"]))
    return f"its probability went from {base} % to {final} % (geometric mean)"


def _bits(result: dict[str, Any]) -> str:
    bits = result["bits_gained"]
    bits_per_parameter = bits / max(1, result["trainable_parameters"])
    text = (
        f"{bits:,.0f} bits saved against the base model, "
        f"{bits_per_parameter:.3g} per trained parameter"
    )
    if _has(result, "bits_memorised"):
        text += f"; {result['bits_memorised']:,.0f} bits of the source itself"
    return text


def _teacher_forced(result: dict[str, Any]) -> str:
    return (
        f"{percent(result['token_accuracy'])} % of the tokens are the model's first choice, "
        "given the true text before them"
    )


def _free_running(result: dict[str, Any]) -> str:
    if not _has(result, "free_accuracy"):
        return "not decoded (train.decode=false)"
    accuracy = percent(result["free_accuracy"])
    return f"writing by itself from the prompt, {accuracy} % of the tokens are right"


def _threshold(result: dict[str, Any]) -> str:
    above = percent(result["share_above_threshold"])
    text = f"{above} % of the tokens have p > 0.5, which makes them certain to be chosen"
    if _has(result, "earliest_stubborn"):
        text += f"; the first that has not: position {int(result['earliest_stubborn']):,}"
    if result.get("violations"):
        text += f"; {result['violations']} broke that rule, which points to a numerical fault"
    return text


def _work(result: dict[str, Any]) -> str:
    early = " (stopped early: all recalled)" if result.get("stopped_early") else ""
    unit = "passes" if _has(result, "converged") else "steps"
    return f"{result['steps_run']:,} {unit}{early}{_convergence(result)}, {result['seconds']:.1f} s"


def _convergence(result: dict[str, Any]) -> str:
    """Whether the training has converged, where that was checked."""
    if not _has(result, "converged"):
        return ""
    text = " (converged" if result["converged"] else " (not converged"
    if _has(result, "expected_gain"):
        gain = result["expected_gain"]
        text += f": three times as many more would gain {gain:.3f} nats per token"
    return f"{text})"


def _has(result: dict[str, Any], key: str) -> bool:
    # result.json has null, a table of runs nan.
    return result.get(key) is not None and not pd.isna(result[key])
