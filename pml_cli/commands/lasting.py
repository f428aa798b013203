"""`pml lasting`: do finished runs survive rounding and merging, and what else did their adapters damage?

`lasting.json` keeps what was measured of each run; one whose adapter, texts and settings are the same is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from pml_cli.analysis import deployment
from pml_cli.config.cache_key import CacheKey
from pml_cli.config.load import read_run
from pml_cli.config.reports import Lasting
from pml_cli.data.opened import source_of, tokens_hash
from pml_cli.errors import MAX_LISTED, UserError, and_n_more, raise_all
from pml_cli.evaluation.conditions import CONDITIONS
from pml_cli.evaluation.eval_text import Pool, learned, random_pool, text_pool
from pml_cli.evaluation.subject import EvalRun
from pml_cli.io import atomic_write
from pml_cli.report.progress import CountDisplay
from pml_cli.report.tables import lasting as lasting_report
from pml_cli.runs.folder import RunFolder, writable_folder
from pml_cli.runs.read import finished_runs

FORMAT = 1  # of lasting.json
FIELDS = (
    "id", "folder", "model", "data", "data_seed", "adapter", "layer", "loss", "setting", "rank", "seqlen", "target_tokens",
    "samples", "seed", "lr", "steps",
)  # fmt: skip


def run(paths: list[Path], settings: Lasting, console: Console, *, as_json: bool = False) -> int:
    """Measure every finished run below `paths` that is not measured yet, write and show all.

    Args:
        paths: folders of runs, searched at any depth; results go to settings.out or the first of them.

    Returns:
        exit code 0.

    Raises:
        UserError: no finished run, an adapter or text that is missing or another one, a folder that cannot be written.
    """
    runs = _runs(paths)
    out = Path(settings.out).expanduser() if settings.out else paths[0]
    before, asked = _read(out / "lasting.json"), _asked(runs, settings, Console(stderr=True))
    waiting = [one for one in asked if not one.is_in(before)]
    stale = {one.row["id"] for one in waiting}
    known = {
        name: one for name, one in before.items() if name not in stale
    }  # also of runs not asked for now
    if waiting:
        try:
            _measure(out, known, waiting, settings, console)
        except KeyboardInterrupt:
            console.print(
                "interrupted; what was measured is kept, and the same command goes on from there"
            )
            raise
    order = [known.pop(one.row["id"]) for one in asked]
    return _finish(
        out, order, settings, console, len(waiting), others=list(known.values()), as_json=as_json
    )


@dataclass(frozen=True)
class _Asked:
    """One finished run, and all that its measurement depends on."""

    row: dict[str, Any]  # FIELDS
    subject: EvalRun
    key: str

    def is_in(self, before: dict[str, Any]) -> bool:
        return bool(before.get(self.row["id"], {}).get("key") == self.key)


def _runs(paths: list[Path]) -> pd.DataFrame:
    folders = shlex.join(str(path) for path in paths)
    runs = finished_runs(paths, f"`pml memft rank=4,8 seqlen=64 out={folders}`")
    return runs.drop_duplicates("id").reindex(columns=list(dict.fromkeys([*runs.columns, *FIELDS])))


def _asked(runs: pd.DataFrame, settings: Lasting, console: Console) -> list[_Asked]:
    """Every run with its samples and texts; those that cannot be measured are left out and told, one line each."""
    pools: dict[CacheKey, dict[str, Pool]] = {}
    found, faults = [], []
    for row in runs.to_dict("records"):
        try:
            found.append(_one({name: _plain(row[name]) for name in FIELDS}, settings, pools))
        except UserError as error:
            faults += [str(error)] if str(error) not in faults else []
    if not found:
        raise_all(faults)
    for line in and_n_more(faults, MAX_LISTED):
        console.print(f"left out: {line}", style="yellow", highlight=False, soft_wrap=True)
    return found


def _one(row: dict[str, Any], settings: Lasting, pools: dict[CacheKey, dict[str, Pool]]) -> _Asked:
    folder = RunFolder(Path(row["folder"]).parent, Path(row["folder"]).name)
    weights = folder.adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"{folder.path}: no adapter/ in this run's folder, so there is nothing to measure"
        )
    run, env = read_run(folder.config), _env(folder)
    samples = source_of(run).take(run.seqlen)
    if tokens_hash(samples) != env["tokens"]:
        raise UserError(
            f"{folder.path}: its data is no longer what it was trained on ({run.data.source})"
        )
    model = CacheKey(run.model)
    if model not in pools:
        pools[model] = {
            "text": text_pool(run.model, settings.text),
            "random": random_pool(run.model, settings.tokens),
        }
    avoided = learned(run, samples)
    texts = {name: pool.apart_from(avoided, settings.tokens) for name, pool in pools[model].items()}
    subject = EvalRun(row["id"], run, samples, folder.adapter, env["base_weights"], texts)
    parts = [
        FORMAT,
        [c.name for c in CONDITIONS],
        settings.tokens,
        settings.decode,
        [pools[model][name].hash for name in texts],
    ]
    parts.append(hashlib.sha256(weights.read_bytes()).hexdigest())
    return _Asked(row, subject, hashlib.sha256(repr(parts).encode()).hexdigest()[:16])


def _env(folder: RunFolder) -> dict[str, Any]:
    try:
        env = json.loads(folder.env.read_text("utf-8"))
        return {name: env[name] for name in ("tokens", "base_weights")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder.env}: not readable ({error}); train this run again") from error


def _plain(value: Any) -> Any:
    """A field of result.json, as JSON holds it."""
    if isinstance(value, list):
        return value
    return None if pd.isna(value) else value


def _read(path: Path) -> dict[str, Any]:
    """What was measured before, by run id."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
        return {one["id"]: one for one in content["runs"]} if content["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable ({error}); delete it to measure anew") from error


def _measure(
    out: Path, known: dict[str, Any], waiting: Sequence[_Asked], settings: Lasting, console: Console
) -> None:
    """Add what is missing to `known`; kept on disk whenever a chunk is done."""
    from pml_cli.evaluation import robustness

    writable_folder(out)
    by_id, first = {one.row["id"]: one for one in waiting}, len(known)
    with CountDisplay(console, "measuring", "runs") as display:
        display.show(0, len(waiting))

        def told(done: list[tuple[EvalRun, dict[str, Any]]]) -> None:
            for subject, found in done:
                one = by_id[subject.id]
                known[subject.id] = {**one.row, "key": one.key, **found}
            _write(out, {"format": FORMAT, "runs": list(known.values())})
            display.show(len(known) - first, len(waiting))

        robustness.measure([one.subject for one in waiting], settings.device, settings.decode, told)


def _write(out: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    atomic_write(out / "lasting.json", lambda aside: aside.write_text(text, "utf-8"))


def _finish(
    out: Path,
    runs: list[dict[str, Any]],
    settings: Lasting,
    console: Console,
    measured: int,
    *,
    others: list[dict[str, Any]],
    as_json: bool,
) -> int:
    table = deployment.rows(runs)
    means, against = deployment.summary(table), deployment.comparison(table)
    content = {
        "format": FORMAT,
        "settings": {"text": settings.text, "tokens": settings.tokens, "decode": settings.decode},
        "conditions": {condition.name: condition.meaning for condition in CONDITIONS},
        "groups": deployment.plain(means),
        "comparison": deployment.plain(against),
        "runs": runs,
    }
    writable_folder(out)
    _write(out, {**content, "runs": [*runs, *others]})
    atomic_write(out / "lasting.csv", lambda aside: table.to_csv(aside, index=False))
    names = ["lasting.csv", "lasting.json", *(_draw(out, table) if settings.figures else [])]
    if as_json:
        console.out(json.dumps(content, indent=1), highlight=False)
        return 0
    for part in lasting_report.shown(table, means, against):
        console.print(part)
    console.print(
        f"{len(runs)} runs, {measured} of them measured now; in {out}: {', '.join(names)}",
        highlight=False,
    )
    return 0


def _draw(out: Path, table: pd.DataFrame) -> list[str]:
    """The figure of each model, kind of data and adapter, as PNG and SVG."""
    from pml_cli.report.figures.lasting import lasting_figure
    from pml_cli.report.figures.registry import write_figure

    groups, names = list(table.groupby(["model", "data", "adapter"])), []
    for key, group in groups:
        stem = (
            "lasting"
            if len(groups) == 1
            else "-".join(["lasting", *map(str, key)]).replace(":", "-").replace("/", "-")
        )
        names += write_figure(out / stem, lasting_figure(group))
    return names
