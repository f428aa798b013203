"""Entries of forgetting.json with a planted harm."""

import itertools

from pml_cli.data.generic_text import KINDS

_numbers = itertools.count()


def entry(*, harm=0.5, method="sft", keep=0.0, keep_harm=0.0, exact=True, **fields):
    """A run with this harm on every kind of text.

    Args:
        harm: nats per token.
        method: its loss.
        keep: `loss.keep`.
        keep_harm: `loss.keep_harm`.
        exact: whether it recalls its sample.
        fields: of the run.
    """
    run_id = f"run-{next(_numbers)}"
    penalty = f"harm={keep_harm:g}" if keep_harm else f"keep={keep:g}" if keep else ""
    measured = {
        "windows": 10,
        "tokens": 2560,
        "base_loss": 3.0,
        "loss": 3.0 + harm,
        "harm": harm,
        "harm_se": 0.05,
        "kl": 1.2 * harm,
        "kl_se": 0.05,
        "changed": min(1.0, harm),
        "changed_se": 0.01,
    }
    run = {
        "id": run_id,
        "folder": f"o/{run_id}",
        "model": "tiny",
        "data": "random",
        "data_seed": 0,
        "adapter": "mlp_block",
        "layer": [4],
        "loss": method,
        "setting": None,
        "rank": 8,
        "seqlen": 32,
        "target_tokens": 32,
        "samples": 1,
        "seed": 0,
        "lr": 0.08,
        "steps": 300,
        "token_accuracy": 1.0,
        "exact_match": float(exact),
        "keep": keep,
        "keep_harm": None,
        "method": method,
        "penalty": penalty,
        "asked_keep": keep,
        "asked_harm": keep_harm,
        "key": "0",
        "harm": harm,
        "harm_low": harm - 0.1,
        "harm_high": harm + 0.1,
        "kinds": {kind: dict(measured) for kind in (*KINDS, "own")},
    }
    return run | fields
