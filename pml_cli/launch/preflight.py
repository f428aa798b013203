"""Checks of a sweep's models before anything is trained or written; no weights are loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pml_cli.errors import UserError, raise_all
from pml_cli.launch.pack import Pack
from pml_cli.model.compiled import check_compiler
from pml_cli.model.device import pick_device
from pml_cli.model.loading import check_weights, load_model
from pml_cli.model.split_model import SplitModel


def check_models(packs: Sequence[Pack], *, on_this_machine: bool) -> None:
    """Check that every model can be built and has the modules that its adapters need.

    Args:
        packs: to be trained.
        on_this_machine: whether they are trained here, where their device has to be.

    Raises:
        UserError: all faults at once, one line each.
    """
    # The cells of a pack share both, and many packs do.
    distinct = {}
    for pack in packs:
        run = pack.cells[0].run
        distinct[repr((run.model, run.adapter))] = run

    skeletons: dict[str, SplitModel] = {}
    faults: dict[str, None] = {}
    for run in distinct.values():
        try:
            if on_this_machine:
                device = pick_device(run.model.device)
                if run.model.compile:
                    check_compiler(device)
            check_weights(run.model)

            key = repr(run.model)
            if key not in skeletons:
                # Shapes and module names are enough, and take no memory on `meta`.
                meta = dataclasses.replace(run.model, weights="random", device="meta")
                skeletons[key] = load_model(meta)
            skeletons[key].sites(run.adapter)
        except UserError as error:
            faults[str(error)] = None

    raise_all(faults)
