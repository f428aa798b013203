"""Trackio: a database in a file, shown by `trackio show`."""

from __future__ import annotations

import contextlib
import io
import os
import shlex

from pml_cli.track.base import Tracker
from pml_cli.track.mirrored_run import MirroredRun

# Where Trackio keeps its databases.
FOLDER = "TRACKIO_DIR"

# The setting that holds the identity of a run.
IDENTITY_KEY = "pml.identity"


class Trackio(Tracker):
    """Runs go into the folder, unless TRACKIO_DIR names another."""

    name = "trackio"
    packages = ("trackio",)
    modules = ("trackio",)

    @property
    def where(self) -> str:
        folder = os.environ.get(FOLDER) or str(self.out)
        return f"{FOLDER}={shlex.quote(folder)} trackio show --project {self.project}"

    def write(self, run: MirroredRun) -> None:
        # It is read when trackio is imported.
        os.environ.setdefault(FOLDER, str(self.out.resolve()))
        import trackio

        # It tells on standard output how to look at each run.
        with contextlib.redirect_stdout(io.StringIO()):
            self._remove_begun(run.identity)
            opened = trackio.init(
                project=self.project,
                name=run.name,
                config={**run.settings, IDENTITY_KEY: run.identity},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            for step, values in run.curve:
                opened.log(values, step=step)
            opened.log(dict(run.results), step=run.last_step)
            # Not `opened.finish`: it would be finished once more, with a line, when Python ends.
            trackio.finish()

    def _remove_begun(self, identity: str) -> None:
        """Remove what a killed process has begun of a run."""
        import trackio

        # Trackio raises it for a project that has no run yet.
        with contextlib.suppress(ValueError):
            for begun in trackio.Api().runs(self.project):
                if begun.config.get(IDENTITY_KEY) == identity:
                    begun.delete()
