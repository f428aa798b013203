"""Figure and tables of `pml lasting`."""

import io

import pytest
from rich.console import Console
from support.planted_deployment import planted_entry

from pml_cli.analysis.deployment import mean_table, measurement_table, sft_comparison
from pml_cli.report.figures.lasting import lasting_figure
from pml_cli.report.tables.lasting import heading, lasting_report


@pytest.mark.parametrize("accuracy", [0.0, 0.76, 0.99, 1.0])
def test_markers_of_recall_are_clear_of_the_frame(accuracy):
    """Accuracies close together and far from 100: a margin of their range would be none."""
    higher = min(1.0, accuracy + 0.003)
    entries = [planted_entry("sft", 0, 2, accuracy), planted_entry("memft_ot", 0, 2, higher)]
    axes = lasting_figure(measurement_table(entries)).axes[0]
    low, high = axes.get_ylim()
    points = axes.get_position().height * axes.figure.get_size_inches()[1] * 72
    to_frame = min(100 * accuracy - low, high - 100 * accuracy)
    # A marker is 6 points wide.
    assert points * to_frame / (high - low) > 6 / 2
    assert low >= -3.5
    assert "ranks, lengths, texts and seeds" in axes.get_title()


def test_the_tables_say_what_was_planted():
    entries = []
    for seed in range(3):
        entries.append(planted_entry("sft", seed, 2, 0.5 + 0.1 * seed))
        entries.append(planted_entry("memft_ot", seed, 2, 0.6 + 0.12 * seed))
    table = measurement_table(entries)
    out = io.StringIO()
    console = Console(file=out, width=80)
    for part in lasting_report(table, mean_table(table), sft_comparison(table)):
        console.print(part)

    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert "m, d, a: layer 4, seqlen 8, lr 0.1, steps 10" in lines
    # Means 60 and 72 % with t intervals over three texts, and the paired difference.
    assert "bf16 60.0 ±24.8 72.0 ±29.8" in lines
    assert "bf16 +12.0 ±5.0" in lines
    assert "bf16 3/3 3/3" in lines
    assert "2 ot 0.50 ±0.00 0.25 ±0.00 0.25 ±0.00 +0.00" in lines
    assert "merged not mergeable: mlp_block adapters lie beside a whole MLP" in lines


def test_a_heading_has_the_settings_below_the_kind():
    assert heading("memft_ot") == "ot"
    assert heading("memft_margin(margin=2)") == "margin\nmargin=2"
