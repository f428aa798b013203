"""The manifest of a sweep: its cells as JSON, for its workers and for `pml status`.

`.pml/requests/KEY.json` in the results folder. Settings that cells share are written once, so a
sweep of 10,000 cells takes a few megabytes. Others may write to the folder, so the file is data
and never code: every value is checked against the declared settings (config/load.py).

    {"format": 1, "asked": TIME,
     "cells": {ID: {"work": TOKENS, "tokens": HASH, "steps": STEPS,
                    "run": {"rank": 4, ..., "model": 0, "data": 2, ...}}},
     "settings": {"model": [{...}], "data": [{...}, ...], ...},
     "packing": {"pack_tokens": 0, "devices": 1, ...}}

`run` gives the plain settings of a cell, and for each group the index of its entry in `settings`;
`tokens` is the hash of what the cell is to learn (earlier versions: neither this nor `steps`).
The first version wrote neither `run` nor `settings`, but a pickle beside the JSON. It is never
loaded: such a sweep is still shown by `pml status`, and the sweep command writes its manifest anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Lt
from pydantic import StringConstraints
from typing_extensions import NotRequired, TypedDict

from pml_cli.config.load import GROUPS_OF_RUN, PLAIN, build_run, group_settings, typed_values
from pml_cli.config.schema import FORMAT, Run
from pml_cli.config.setting import faults
from pml_cli.errors import UserError, raise_all
from pml_cli.format import counted
from pml_cli.io import atomic_write, listed, own_folder
from pml_cli.results.run_folders import run_key
from pml_cli.validation import Count, Number, read_json

if TYPE_CHECKING:
    from pml_cli.data.cell import CellPlan
    from pml_cli.launch.pack import Pack
    from pml_cli.launch.packing import Packing

# What helps where a manifest is damaged.
AGAIN = "delete it and run the sweep again"

# A cell's id is the name of its folder, so it must not lead out of the results folder.
CellId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")]


class CellFields(TypedDict):
    """One cell of a manifest."""

    work: Annotated[float, Ge(0), Lt(1e30)]
    tokens: NotRequired[str]
    steps: NotRequired[Count]
    run: NotRequired[dict[str, Any]]


class ManifestFields(TypedDict):
    """A manifest; its settings are checked as those of a command line are."""

    format: Literal[1]
    asked: Number
    cells: dict[CellId, CellFields]
    settings: NotRequired[dict[str, list[Any]]]
    packing: NotRequired[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SweepManifest:
    """One requested sweep.

    Attributes:
        path: of the JSON file.
        work: tokens of all training steps of each cell, by cell id, in the order of the packs.
        hashes: of the tokens that each cell is to learn, by cell id; empty: not known.
        steps: of the training of each cell, by cell id; 0: not known.
        requested_at: by the clock of the machine that wrote it, in seconds since the epoch.
    """

    path: Path
    work: Mapping[str, float]
    hashes: Mapping[str, str]
    steps: Mapping[str, int]
    requested_at: float

    @property
    def key(self) -> str:
        """Names the sweep by its cells: equal cells, equal key."""
        return self.path.stem

    @classmethod
    def write(cls, out: Path, packs: Sequence[Pack], packing: Packing) -> SweepManifest:
        """Write the manifest of a planned sweep; one of the same cells is replaced."""
        manifest = cls.planned(out, packs)
        shared = _SharedSettings()
        cells: dict[str, Any] = {}
        for cell in itertools.chain.from_iterable(pack.cells for pack in packs):
            cells[cell.id] = {
                "work": manifest.work[cell.id],
                "tokens": cell.tokens_hash,
                "steps": cell.steps,
                "run": shared.record(cell.run),
            }

        body = {
            "format": FORMAT,
            "asked": manifest.requested_at,
            "cells": cells,
            "settings": shared.tables,
            "packing": dataclasses.asdict(packing),
        }

        own_folder(out, ".pml", "requests")
        text = json.dumps(body)
        atomic_write(manifest.path, lambda aside: aside.write_text(text, "utf-8"), durable=True)
        return manifest

    @classmethod
    def planned(cls, out: Path, packs: Sequence[Pack]) -> SweepManifest:
        """The manifest of a planned sweep, which is not on disk."""
        cells = list(itertools.chain.from_iterable(pack.cells for pack in packs))
        return cls(
            path=manifest_path(out, _key(cell.id for cell in cells)),
            work={cell.id: cell.work for cell in cells},
            hashes={cell.id: cell.tokens_hash for cell in cells},
            steps={cell.id: cell.steps for cell in cells},
            requested_at=time.time(),
        )

    @classmethod
    def read(cls, path: Path) -> SweepManifest:
        """The cells of a manifest and their work, as `pml status` needs them.

        Raises:
            UserError: it is damaged.
        """
        body = _read_body(path)
        cells = body["cells"]
        return cls(
            path=path,
            work={name: cell["work"] for name, cell in cells.items()},
            hashes={name: cell.get("tokens", "") for name, cell in cells.items()},
            steps={name: cell.get("steps", 0) for name, cell in cells.items()},
            requested_at=body["asked"],
        )

    def read_runs(self) -> list[Run]:
        """The typed runs of the cells, in the manifest's order.

        Raises:
            UserError: the file is damaged, holds settings that this version does not know, or was
                written by the first version.
        """
        body = _read_body(self.path)
        if "settings" not in body:
            raise UserError(
                f"{self.path}: written by an older pml, without the settings of its cells; "
                "run the same sweep command again to rewrite it"
            )
        try:
            groups = {}
            for group in GROUPS_OF_RUN:
                entries = body["settings"][group]
                groups[group] = [_checked_settings(group, values) for values in entries]

            records = [cell["run"] for cell in body["cells"].values()]
            return [_run_of(record, groups) for record in records]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, UserError) as error:
            raise _damaged(self.path, error) from error

    def plan_packs(self, *, remote_code: bool = False) -> list[Pack]:
        """Plan the packs from the runs again: the same ones in every process of the sweep.

        Args:
            remote_code: whether `model.trust_remote_code` may be set. The sweep command says so to
                its workers; the file alone must not make them run a model's own code.

        Raises:
            UserError: the file is damaged, or its cells cannot be planned on this machine.
        """
        from pml_cli.launch.packing import Packing, make_packs, plan_requested

        # Remote code is the one setting by which data could become code.
        runs = self.read_runs()
        if not remote_code and any(run.model.trust_remote_code for run in runs):
            raise UserError(
                f"{self.path}: model.trust_remote_code=true, "
                "which was not requested by the command that started this worker"
            )

        cells = self._as_requested(plan_requested(runs))
        try:
            packing = typed_values(Packing, _read_body(self.path).get("packing", {}))
        except (TypeError, UserError) as error:
            raise _damaged(self.path, error) from error
        return make_packs(cells, packing)

    def _as_requested(self, cells: Sequence[CellPlan]) -> list[CellPlan]:
        """Planned cells under their ids in the manifest, whose fronts may be others.

        Raises:
            UserError: they are others than the requested ones, or would learn other tokens.
        """
        names = {run_key(name): name for name in self.work}
        # Results go to the folders of the requested cells, and to no others.
        if {run_key(cell.id) for cell in cells} != names.keys():
            raise UserError(
                f"{self.path}: its settings give other run ids here; "
                "the data or the model have changed, or the file was; run the sweep again"
            )

        requested = [dataclasses.replace(cell, id=names[run_key(cell.id)]) for cell in cells]
        changed = [cell for cell in requested if self._has_changed(cell)]
        if changed:
            raise UserError(
                f"{self.path}: {len(changed)} of {counted(cells, 'cell')} would learn other tokens "
                f"here than when the sweep was requested (first {changed[0].id}); the data, the "
                "tokenizer or its chat template have changed, or differ on this machine; "
                "run the sweep again"
            )
        return requested

    def _has_changed(self, cell: CellPlan) -> bool:
        requested = self.hashes[cell.id]
        return bool(requested) and requested != cell.tokens_hash


def read_manifests(out: Path, left_out: list[str] | None = None) -> list[SweepManifest]:
    """The manifests of a results folder, the last requested one at the end.

    Args:
        out: the results folder.
        left_out: takes a line for each that is damaged, in place of an error: it may be of somebody
            else who works in this folder.

    Raises:
        UserError: one of them is damaged; with `left_out` only where none is readable.
    """
    manifests = []
    damaged: list[UserError] = []
    for path in listed(out / ".pml" / "requests", "*.json"):
        try:
            manifests.append(SweepManifest.read(path))
        except UserError as error:
            damaged.append(error)
    if damaged and (left_out is None or not manifests):
        raise damaged[0]
    if left_out is not None:
        left_out[:] = map(str, damaged)
    return sorted(manifests, key=lambda manifest: manifest.requested_at)


def manifest_path(out: Path, key: str) -> Path:
    """Where the manifest of a sweep lies."""
    return out / ".pml" / "requests" / f"{key}.json"


def _key(ids: Iterable[str]) -> str:
    hashes = sorted(run_key(name) for name in ids)
    digest = hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    return digest[:10]


class _SharedSettings:
    """Collects the settings of runs, equal ones once."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Any]] = {group: [] for group in GROUPS_OF_RUN}
        self._by_value: dict[tuple[str, str], int] = {}

        # Cells of a grid share the very objects, and looking these up skips a slow repr.
        # The settings are kept here too, since the id of a freed object may be reused.
        self._by_object: dict[tuple[str, int], tuple[Any, int]] = {}

    def record(self, run: Run) -> dict[str, Any]:
        """The plain settings of a run, and its index in the table of each group."""
        record: dict[str, Any] = {name: getattr(run, name) for name in PLAIN}
        for group in GROUPS_OF_RUN:
            record[group] = self._index(group, getattr(run, group))
        return record

    def _index(self, group: str, settings: Any) -> int:
        by_object = self._by_object.get((group, id(settings)))
        if by_object is not None:
            return by_object[1]

        table = self.tables[group]
        value = (group, repr(settings))
        if value not in self._by_value:
            self._by_value[value] = len(table)
            table.append(dataclasses.asdict(settings))

        index = self._by_value[value]
        self._by_object[group, id(settings)] = (settings, index)
        return index


def _checked_settings(group: str, values: Mapping[str, Any]) -> Any:
    settings = group_settings(group, values)
    raise_all(faults(settings, f"{group}."))
    return settings


def _run_of(record: Mapping[str, Any], groups: Mapping[str, Sequence[Any]]) -> Run:
    plain = {name: record[name] for name in PLAIN}
    chosen = {}
    for group in GROUPS_OF_RUN:
        index = record[group]
        # A negative index would count from the end.
        if not isinstance(index, int) or index < 0:
            raise ValueError(f"{group}={index}: not an index of its settings")
        chosen[group] = groups[group][index]
    run = build_run(plain, chosen)
    raise_all(faults(run))
    return run


def _read_body(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = read_json(path, ManifestFields, AGAIN)
    return body


def _damaged(path: Path, error: Exception) -> UserError:
    one_line = " ".join(str(error).split())
    reason = one_line or type(error).__name__
    return UserError(f"{path}: cannot be read ({reason}); {AGAIN}")
