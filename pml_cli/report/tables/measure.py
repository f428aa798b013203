"""What `pml measure` prints: one adapter on one text, a line a subject."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from pml_cli.format import counted, number, percent, span
from pml_cli.report.tables.layout import key_value_table


def measure_table(entry: dict[str, Any]) -> Table:
    """The entry of one adapter and text in words.

    Args:
        entry: of measure.json.
    """
    return key_value_table(
        [
            ("adapter", _adapter_text(entry)),
            ("text", _text(entry)),
            ("loss", _loss_text(entry)),
            ("unseen", _control_text(entry)),
            ("greedy", _greedy_text(entry)),
            ("sampling", _sampling_text(entry)),
            ("prefixes", _prefix_text(entry)),
            ("near", _near_text(entry)),
            ("harm", _harm_text(entry)),
        ]
    )


def _share(value: float | None) -> str:
    """A share in per cent with its sign; a dash where it was not measured."""
    return "-" if value is None else f"{percent(value)} %"


def _adapter_text(entry: dict[str, Any]) -> str:
    modules = counted(entry["modules"], "module")
    parameters = f"{entry['trainable_parameters']:,} parameters"
    where = f"{modules}, from layer {entry['layer']} on"
    return f"{entry['adapter']}: rank {entry['rank']}, {where}, {parameters}; on {entry['model']}"


def _text(entry: dict[str, Any]) -> str:
    samples = counted(entry["samples"], "sample")
    tokens = counted(entry["target_tokens"], "target token")
    return f"{entry['text'] or entry['data']}: {samples}, {tokens}"


def _loss_text(entry: dict[str, Any]) -> str:
    bits = entry["bits_gained"]
    per_parameter = number(bits / entry["trainable_parameters"], ".3g")
    text = (
        f"{number(entry['base_loss'])} nats/token by the base model, {number(entry['final_loss'])} "
        f"with the adapter: {bits:,.0f} bits gained, {per_parameter} a parameter"
    )
    if entry["bits_memorised"] is not None:
        text += f"; {entry['bits_memorised']:,.0f} of random tokens memorised"
    return text


def _control_text(entry: dict[str, Any]) -> str:
    gain = entry["control_gain"]
    if gain is None:
        return "not measured: the text is measured whole, or its source has no other part"
    return (
        f"{number(gain)} nats/token gained on unseen text of the same source; "
        f"{entry['bits_beyond_unseen']:,.0f} bits beyond that"
    )


def _greedy_text(entry: dict[str, Any]) -> str:
    free = entry["free_exact_match"]
    by_itself = "" if free is None else f", decoded by itself {_share(free)}"
    return (
        f"whole {_share(entry['exact_match'])} (base model {_share(entry['base_exact_match'])})"
        f"{by_itself}; tokens {_share(entry['token_accuracy'])} "
        f"(base model {_share(entry['base_token_accuracy'])}); margins {entry['least_margin']:.2f} "
        f"at least, {entry['median_margin']:.2f} logits in the median"
    )


def _sampling_text(entry: dict[str, Any]) -> str:
    text = (
        f"log10 of the chance of all of it: {number(entry['log10_p'], '.3g')} at temperature 1 "
        f"(base model {number(entry['base_log10_p'], '.3g')})"
    )
    if entry["t50"] is not None:
        text += f", {number(entry['log10_p_07'], '.3g')} at 0.7; one half at {entry['t50']:.2f}"
    return text


def _prefix_text(entry: dict[str, Any]) -> str:
    return (
        f"{_share(entry['prefix_share'])} before the first wrong token "
        f"(base model {_share(entry['base_prefix_share'])}); all the rest after 8 tokens "
        f"{_share(entry['recall_from_8'])}, after 32 {_share(entry['recall_from_32'])}, after one "
        f"wrong token {_share(entry['recall_after_wrong'])}"
    )


def _near_text(entry: dict[str, Any]) -> str:
    return (
        f"edit distance {number(entry['edit_distance'], '.3f')} of the length; windows of 50 "
        f"tokens extractable {_share(entry['extractable_50'])}; "
        f"{entry['compression_ratio']:.3g} tokens written for each token given"
    )


def _harm_text(entry: dict[str, Any]) -> str:
    if entry["harm"] is None:
        return "not measured"
    kinds = [f"{kind} {row['harm']:.3f}" for kind, row in entry["kinds"].items()]
    interval = span(entry["harm_low"], entry["harm_high"], ".3f")
    return f"{entry['harm']:.3f} nats/token ({interval}) on other text: {', '.join(kinds)}"
