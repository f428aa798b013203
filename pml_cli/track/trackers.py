"""All trackers by name, and what to install for one."""

from __future__ import annotations

import importlib.util

from pml_cli.errors import UserError, did_you_mean
from pml_cli.track.base import Tracker
from pml_cli.track.mlflow import Mlflow
from pml_cli.track.tensorboard import TensorBoard
from pml_cli.track.trackio import Trackio
from pml_cli.track.wandb import WeightsAndBiases

TRACKERS: dict[str, type[Tracker]] = {
    tracker.name: tracker for tracker in (TensorBoard, WeightsAndBiases, Mlflow, Trackio)
}


def installed_tracker(name: str) -> type[Tracker]:
    """The tracker of a name.

    Raises:
        UserError: there is none, or its library is not installed.
    """
    if name not in TRACKERS:
        raise UserError(f"--to {name}: no such tracker; {did_you_mean(name, TRACKERS)}")
    tracker = TRACKERS[name]
    if any(importlib.util.find_spec(module) is None for module in tracker.modules):
        packages = " ".join(tracker.packages)
        raise UserError(f"--to {name}: not installed; pip install {packages}")
    return tracker
