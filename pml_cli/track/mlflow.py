"""MLflow: the server of MLFLOW_TRACKING_URI, else a database in a file."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pml_cli.errors import UserError, first_line
from pml_cli.track.base import Tracker
from pml_cli.track.mirrored_run import MirroredRun

T = TypeVar("T")

URI = "MLFLOW_TRACKING_URI"

# The tag that holds the identity of a run.
TAG = "pml.identity"

# What one request may hold.
METRICS_AT_ONCE = 1000
PARAMETERS_AT_ONCE = 100
MAX_PARAMETER = 6000
RUNS_AT_ONCE = 1000


class Mlflow(Tracker):
    """The project is an experiment; what it has, its tags tell, from whichever machine."""

    name = "mlflow"
    packages = ("mlflow-skinny", "sqlalchemy", "alembic")
    modules = ("mlflow", "sqlalchemy", "alembic")

    def __init__(self, project: str, out: Path) -> None:
        super().__init__(project, out)
        # Folders of files, MLflow's former store, are refused since MLflow 3.
        self.uri = os.environ.get(URI) or f"sqlite:///{(out / 'mlflow.db').resolve()}"
        self._unfinished: dict[str, str] = {}

    @property
    def where(self) -> str:
        return f"mlflow ui --backend-store-uri {self.uri}"

    @cached_property
    def _client(self) -> Any:
        # It says a line for each table of a new database, and would report its own use.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        with _refusals():
            return MlflowClient(tracking_uri=self.uri)

    @cached_property
    def _experiment(self) -> str:
        """The id of the experiment, which is made where it is missing."""
        with _refusals():
            experiment = self._client.get_experiment_by_name(self.project)
            if experiment is None:
                # Nothing is stored there, but MLflow wants a place beside the database.
                folder = None
                if not os.environ.get(URI):
                    folder = (self.out / "artifacts").resolve().as_uri()
                return str(self._client.create_experiment(self.project, artifact_location=folder))
        if experiment.lifecycle_stage != "active":
            raise UserError(f"--project {self.project}: this experiment was deleted in MLflow")
        return str(experiment.experiment_id)

    def mirrored(self) -> set[str]:
        identities = set()
        token = None
        while True:
            with _refusals():
                page = self._client.search_runs(
                    [self._experiment],
                    filter_string=f"tags.`{TAG}` LIKE '%'",
                    max_results=RUNS_AT_ONCE,
                    page_token=token,
                )
            for run in page:
                identity = run.data.tags[TAG]
                if run.info.status == "FINISHED":
                    identities.add(identity)
                else:
                    self._unfinished[identity] = run.info.run_id
            token = page.token
            if not token:
                return identities

    def write(self, run: MirroredRun) -> None:
        from mlflow.entities import Metric, Param

        client = self._client
        moment = int(1000 * run.ended)
        points = [*run.curve, (run.last_step, dict(run.results))]
        metrics = [
            Metric(name, value, moment, step)
            for step, values in points
            for name, value in values.items()
        ]
        parameters = [Param(key, str(value)[:MAX_PARAMETER]) for key, value in run.settings.items()]

        with _refusals():
            begun = self._unfinished.pop(run.identity, None)
            if begun is not None:
                client.delete_run(begun)
            tags = {TAG: run.identity}
            created = client.create_run(
                self._experiment, start_time=moment, run_name=run.name, tags=tags
            )
            for batch in _batches(parameters, PARAMETERS_AT_ONCE):
                client.log_batch(created.info.run_id, params=batch)
            for batch in _batches(metrics, METRICS_AT_ONCE):
                client.log_batch(created.info.run_id, metrics=batch)
            client.set_terminated(created.info.run_id, end_time=moment)

    def remember(self, run: MirroredRun) -> None:
        # The status of its run says it.
        pass


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what MLflow refuses into a UserError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise UserError(f"--to mlflow: {first_line(error)}") from error
