"""tokens.parquet with planted trajectories, and run folders that hold them."""

import numpy as np
import pandas as pd

from pml_cli.results.folder import RunFolder
from support.planted_laws import result

STEPS = (0, 10, 20, 30)

# p of six tokens at four steps; crossings and falls of them are counted by hand in the tests.
PLANTED_P = np.array(
    [
        [0.10, 0.60, 0.01, 0.40, 0.50, 0.20],
        [0.60, 0.70, 0.02, 0.60, 0.50, 0.55],
        [0.70, 0.40, 0.30, 0.30, 0.49, 0.45],
        [0.80, 0.90, 0.40, 0.55, 0.51, 0.30],
    ]
)
CORRECT = PLANTED_P > 0.35
FIRST_TOKEN_ID = 100
WRONG_TOKEN_ID = 7


def token_table(p_TS=PLANTED_P, correct_TS=CORRECT, steps=STEPS, samples=None) -> pd.DataFrame:
    """The rows of a tokens.parquet.

    Args:
        p_TS: of each target token at each step, (T, S).
        correct_TS: whether greedy decoding picks the token, (T, S).
        samples: of each token, (S,); all of one sample by default.
    """
    T, S = p_TS.shape
    sample = np.zeros(S, np.int32) if samples is None else np.asarray(samples, np.int32)
    lengths = np.unique(sample, return_counts=True)[1]
    position = np.concatenate([np.arange(length) for length in lengths])
    token_id = np.tile(np.arange(S) + FIRST_TOKEN_ID, T).astype(np.int32)
    correct = correct_TS.ravel()
    return pd.DataFrame(
        {
            "step": np.repeat(np.asarray(steps, np.int32), S),
            "sample": np.tile(sample, T),
            "position": np.tile(position, T).astype(np.int32),
            "token_id": token_id,
            "nll": -np.log(p_TS.ravel()).astype(np.float32),
            "p": p_TS.ravel().astype(np.float32),
            "margin": np.where(correct, 1.0, -1.0).astype(np.float32),
            "argmax_id": np.where(correct, token_id, WRONG_TOKEN_ID).astype(np.int32),
            "correct": correct,
        }
    )


def write_run(root, name, rows, **fields):
    """A run folder with these tokens, whose result.json agrees with them; `fields` override it."""
    folder = RunFolder(root, name)
    folder.path.mkdir(parents=True)
    folder.write_table(folder.tokens, rows)

    last = rows[rows["step"] == rows["step"].max()]
    wrong = last[~last["correct"]]
    measured = {
        "token_accuracy": float(last["correct"].mean()),
        "exact_match": float(last["correct"].all()),
        "free_accuracy": float(last["correct"].mean()),
        "target_tokens": len(last),
        "seqlen": len(last),
        "final_loss": float(last["nll"].mean()),
        "first_failure": int(wrong["position"].min()) if len(wrong) else None,
    }
    folder.finish(result(4, len(last)) | measured | fields)
