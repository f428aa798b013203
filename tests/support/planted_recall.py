"""Runs with a planted threshold of recall."""

import pandas as pd


def planted(
    least: dict[str, list[float]],
    lr: float = 0.1,
    seqlen: int = 64,
    ranks=(1, 2, 3, 4, 6, 8, 12, 16),
) -> pd.DataFrame:
    """Runs of each loss on several texts: recalled whole from the given rank on."""
    rows = []
    for loss, per_text in least.items():
        for text, from_rank in enumerate(per_text):
            for rank in ranks:
                same = {
                    "model": "m",
                    "data": "d",
                    "data_seed": text,
                    "adapter": "a",
                    "layer": 4,
                    "setting": "",
                    "rank": rank,
                }
                same |= {
                    "seqlen": seqlen,
                    "seed": 0,
                    "target_tokens": seqlen,
                    "samples": 1,
                    "lr": lr,
                    "steps": 100,
                }
                whole = float(rank >= from_rank)
                rows.append(
                    same
                    | {
                        "loss": loss,
                        "exact_match": whole,
                        "token_accuracy": 0.5 + 0.5 * whole,
                        "delta_loss": 1.0,
                    }
                )
    return pd.DataFrame(rows)
