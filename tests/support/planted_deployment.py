"""Entries of lasting.json with a planted accuracy."""

from pml_cli.evaluation.conditions import CONDITIONS


def planted_entry(loss: str, seed: int, rank: int, accuracy: float) -> dict:
    """A run that recalls equally under every condition that is not merged."""
    measured = {
        "status": "measured",
        "token_accuracy": accuracy,
        "kept_whole": 1.0,
        "fall_worst": 0.1,
        "shift_rms": 0.05,
    }
    not_mergeable = {"status": "not mergeable: why"}
    text = {"tokens": 5, "base_loss": 3.0, "loss": 3.5, "kl": 0.25, "changed": 0.5}
    return {
        "id": f"{loss}{seed}{rank}",
        "folder": "",
        "model": "m",
        "data": "d",
        "data_seed": seed,
        "adapter": "a",
        "layer": 4,
        "loss": loss,
        "setting": None,
        "rank": rank,
        "seqlen": 8,
        "target_tokens": 8,
        "samples": 1,
        "seed": 0,
        "lr": 0.1,
        "steps": 10,
        "key": "",
        "offenders": [],
        "conditions": {
            condition.name: not_mergeable if condition.merged else measured
            for condition in CONDITIONS
        },
        "damage": {"text": text, "random": text},
    }
