"""Weights & Biases: online, or with WANDB_MODE=offline into files for `wandb sync`."""

from __future__ import annotations

import shlex

from pml_cli.errors import UserError, first_line
from pml_cli.io import remove
from pml_cli.track.base import Tracker
from pml_cli.track.mirrored_run import MirroredRun

# W&B takes names of this length.
MAX_NAME = 128


class WeightsAndBiases(Tracker):
    """A run has its identity as id: a service that has it takes none of its steps twice."""

    name = "wandb"
    packages = ("wandb",)
    modules = ("wandb",)

    @property
    def where(self) -> str:
        folder = shlex.quote(str(self.out))
        return f"project {self.project}, files in {folder}/wandb (offline: wandb sync)"

    def write(self, run: MirroredRun) -> None:
        import wandb

        # Offline, what a killed process has begun would be synchronised beside this one.
        for path in (self.out / "wandb").glob(f"offline-run-*-{run.identity}"):
            remove(path)
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        try:
            with wandb.init(
                project=self.project,
                id=run.identity,
                name=run.name[-MAX_NAME:],
                dir=str(self.out),
                config=dict(run.settings),
                resume="allow",
                settings=quiet,
            ) as opened:
                for step, values in run.curve:
                    opened.log(values, step=step)
                opened.summary.update(dict(run.results))
        except wandb.errors.Error as error:
            hint = "WANDB_MODE=offline needs no account"
            raise UserError(f"--to wandb: {first_line(error).rstrip('.')}; {hint}") from error
