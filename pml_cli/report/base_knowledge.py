"""What a base model knows of its targets before any training, in words: the paper's r0."""

from __future__ import annotations

import pandas as pd

# Of result.json; runs of earlier versions have none of it.
BASE_COLUMNS = ("base_exact_match", "base_token_accuracy", "base_log10_p")

# A report warns if the base model already predicts at least this share of the tokens.
MUCH_KNOWN = 0.2


def base_lines(runs: pd.DataFrame) -> list[str]:
    """What the base model knows by itself, and what is gained on unseen text: a line a source.

    Args:
        runs: rows of result.json.
    """
    lines = []
    for (model, data), group in runs.groupby(["model", "data"]):
        known = _known(group)
        if known is None:
            continue
        line = (
            f"{model} on {data} before training: {100 * known['base_exact_match']:.0f} % whole, "
            f"{100 * known['base_token_accuracy']:.1f} % of the tokens, log10 p "
            f"{known['base_log10_p']:.3g}"
        )
        gained = pd.to_numeric(group["control_gain"]).mean() if "control_gain" in group else None
        if pd.notna(gained):
            line += f"; the adapters gain {gained:.2f} nats/token on unseen text of that source"
        lines.append(line)
    return lines


def much_known_line(cells: pd.DataFrame) -> str:
    """A warning where the base model knows much of what was to be learned; empty: it does not.

    Args:
        cells: rows of result.json of one group.
    """
    known = _known(cells)
    if known is None or known["base_token_accuracy"] < MUCH_KNOWN:
        return ""
    return (
        f"known    the base model predicts {100 * known['base_token_accuracy']:.0f} % of these "
        f"tokens right by itself, {100 * known['base_exact_match']:.0f} % of the texts whole: "
        "recall is partly prior knowledge, and the reported bits are those added by the adapter"
    )


def _known(runs: pd.DataFrame) -> pd.Series[float] | None:
    """Means of BASE_COLUMNS over texts; None where they were not measured."""
    if not {*BASE_COLUMNS, "data_seed", "seqlen"} <= set(runs):
        return None
    # Each text once, however many adapters learn it.
    texts = runs.drop_duplicates(["data_seed", "seqlen"])
    known = texts[list(BASE_COLUMNS)].apply(pd.to_numeric).mean()
    return None if known.isna().any() else known
