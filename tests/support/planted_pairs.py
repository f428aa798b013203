"""Runs with a planted difference in accuracy between plain fine-tuning and another loss."""

import pandas as pd


def planted_pairs(
    differences: list[float], rank: int = 4, lr: float = 0.01, loss: str = "memft_ot", **fields
) -> pd.DataFrame:
    """A run of sft and one of another loss for each difference in accuracy, each on its own text.

    Args:
        fields: of the runs of the other loss, in place of those here.
    """
    rows = []
    for seed, difference in enumerate(differences):
        for name in ("sft", loss):
            is_other = name == loss
            row = {
                "model": "m",
                "data": "d",
                "data_seed": seed,
                "adapter": "a",
                "layer": 4,
                "setting": "",
                "rank": rank,
                "seqlen": 64,
                "seed": 0,
                "target_tokens": 64,
                "samples": 1,
                "lr": lr,
                "steps": 100,
                "loss": name,
                "token_accuracy": 0.4 + 0.1 * seed + (difference if is_other else 0.0),
                "exact_match": 0.0,
                "share_above_threshold": 0.1,
                "delta_loss": 1.0,
                "first_failure": None if is_other else 3,
                "steps_to_recall": 40 if is_other else None,
                "gradient_above": 0.5,
                "tokens_seen": 6400,
            }
            rows.append(row | fields if is_other else row)
    return pd.DataFrame(rows)
