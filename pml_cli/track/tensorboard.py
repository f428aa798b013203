"""TensorBoard: event files, a folder a run."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

from pml_cli.io import own_folder, remove
from pml_cli.track.base import Tracker
from pml_cli.track.mirrored_run import MirroredRun


class TensorBoard(Tracker):
    """Scalars of curve and results; settings and results in its page HPARAMS."""

    name = "tensorboard"
    packages = ("tensorboard",)
    modules = ("tensorboard",)

    @property
    def where(self) -> str:
        return f"tensorboard --logdir {shlex.quote(str(self.out))}"

    def write(self, run: MirroredRun) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = own_folder(self.out, self.project, *PurePosixPath(run.name).parts)
        for path in folder.glob("events.out.tfevents.*"):
            remove(path)

        settings = {key: "null" if value is None else value for key, value in run.settings.items()}
        with SummaryWriter(str(folder)) as writer:
            # As SummaryWriter.add_hparams, which would make another folder for it.
            file = writer.file_writer
            for summary in hparams(settings, dict(run.results)):
                file.add_summary(summary, walltime=run.ended)
            for step, values in run.curve:
                for name, value in values.items():
                    writer.add_scalar(name, value, step, walltime=run.ended)
            for name, value in run.results.items():
                writer.add_scalar(name, value, run.last_step, walltime=run.ended)
