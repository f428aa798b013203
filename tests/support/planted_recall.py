"""Runs with a planted threshold of recall."""

import pandas as pd


def planted_recall(
    first_ranks: dict[str, list[float]],
    lr: float = 0.1,
    seqlen: int = 64,
    ranks=(1, 2, 3, 4, 6, 8, 12, 16),
) -> pd.DataFrame:
    """Runs of each loss on several texts, each recalled verbatim from a given rank on.

    Args:
        first_ranks: for each loss, that rank for each text.
    """
    rows = []
    for loss, of_texts in first_ranks.items():
        for text, first_rank in enumerate(of_texts):
            for rank in ranks:
                recalled = float(rank >= first_rank)
                rows.append(
                    {
                        "model": "m",
                        "data": "d",
                        "data_seed": text,
                        "adapter": "a",
                        "layer": 4,
                        "setting": "",
                        "rank": rank,
                        "seqlen": seqlen,
                        "seed": 0,
                        "target_tokens": seqlen,
                        "samples": 1,
                        "lr": lr,
                        "steps": 100,
                        "loss": loss,
                        "exact_match": recalled,
                        "token_accuracy": 0.5 + 0.5 * recalled,
                        "delta_loss": 1.0,
                    }
                )
    return pd.DataFrame(rows)
