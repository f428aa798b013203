"""Importing torch, transformers and the modules that train: seconds, in which no signal may cut in.

A finished sweep, a dry run, `pml status` and the help never come here.
"""

from __future__ import annotations

import importlib

from pml_cli.launch.signals import deferred_signals


def import_trainer() -> None:
    """Import everything that training needs, with signals deferred until it is complete."""
    with deferred_signals():
        importlib.import_module("pml_cli.launch.pack_trainer")

        # transformers imports these only when they are first used, that is while loading a model
        transformers = importlib.import_module("transformers")
        for lazy_name in ("AutoModelForCausalLM", "AutoConfig"):
            getattr(transformers, lazy_name)
