"""The run folder: the contract between training and everything that reads results.

`outputs/<sweep>/<id>/` holds config.yaml, env.json, tokens.parquet, curve.parquet, adapter/ and, written last, result.json:
it exists when, and only when, the run is done. error.json stands in its place when the run failed. Every file is complete
or absent.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pml_cli.config.schema import FORMAT
from pml_cli.errors import UserError
from pml_cli.io import atomic_write, temporary_path

if TYPE_CHECKING:
    import pandas as pd  # takes half a second; `pml status` does without

RESULT, ERROR = "result.json", "error.json"


class RunFolder:
    """Owns every path of one run."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.id = run_id
        self.path = Path(root) / run_id
        self.config = self.path / "config.yaml"
        self.env = self.path / "env.json"
        self.tokens = self.path / "tokens.parquet"
        self.curve = self.path / "curve.parquet"
        self.adapter = self.path / "adapter"
        self.result = self.path / RESULT
        self.error = self.path / ERROR

    def is_done(self) -> bool:
        """Whether a complete result of this format lies here. A result that cannot be read does not count."""
        try:
            return bool(json.loads(self.result.read_text("utf-8"))["format"] == FORMAT)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def has_ended(self, fresh: bool = False) -> bool:
        """Whether the run is done or has failed.

        Args:
            fresh: ask the file server, past what this machine remembers of the folders (NFS).
        """
        if fresh:
            for folder in (self.path.parent, self.path):
                _ask_anew(folder)
        return self.error.exists() or self.is_done()

    def failure(self) -> str | None:
        """Why the run failed; None when it did not."""
        try:
            return str(json.loads(self.error.read_text("utf-8")).get("reason", ""))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError):
            return "error.json cannot be read"

    def write_text(self, path: Path, text: str) -> None:
        atomic_write(path, lambda aside: aside.write_text(text, "utf-8"))

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        self.write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def write_table(self, path: Path, table: pd.DataFrame) -> None:
        """A parquet file of the columns; the index is not kept."""
        import pyarrow
        from pyarrow import parquet

        columns = pyarrow.table(
            {name: table[name].to_numpy() for name in table}
        )  # half the time of to_parquet
        atomic_write(path, lambda aside: parquet.write_table(columns, aside, compression="zstd"))

    def write_adapter(self, save: Callable[[Path], None]) -> None:
        """Fill a folder aside and put it in place whole."""
        aside = temporary_path(self.adapter)
        aside.mkdir(parents=True)
        try:
            save(aside)
            shutil.rmtree(self.adapter, ignore_errors=True)
            aside.replace(self.adapter)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def finish(self, result: dict[str, Any]) -> None:
        """The last write of a run that went well."""
        self.error.unlink(missing_ok=True)
        self.write_json(self.result, {"format": FORMAT, "id": self.id, **result})

    def fail(self, reason: str, detail: str = "") -> None:
        self.write_json(
            self.error, {"format": FORMAT, "id": self.id, "reason": reason, "detail": detail}
        )


def report_folder(out: Path) -> Path:
    """The folder, made where it is missing, and open for writing.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot make this folder ({error.strerror})") from error
    if not os.access(out, os.W_OK):
        raise UserError(f"out={out}: no permission to write there")
    return out


def _ask_anew(folder: Path) -> None:
    with suppress(OSError):
        os.close(os.open(folder, os.O_RDONLY))


def read_runs(roots: Iterable[Path], left_out: list[str] | None = None) -> pd.DataFrame:
    """All finished runs below the given folders, one row each: the fields of result.json, and `folder`.

    Runs that lie below two of the roots count once.

    Args:
        left_out: takes a line for each result that cannot be read or is of another format, instead of an error.

    Raises:
        UserError: a root that does not exist, a result that cannot be read, or one of another format.
    """
    import pandas as pd

    rows = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(
                f"{root}: "
                + ("a file; give a folder of runs" if root.exists() else "no such folder")
            )
        for path in _find(root, RESULT):
            try:
                result = _read_result(path)
            except UserError as error:
                if left_out is None:
                    raise
                left_out.append(str(error))
                continue
            if result is not None:
                rows[path.resolve()] = result | {"folder": str(path.parent)}
    return pd.DataFrame(list(rows.values()))


def check_formats(out: Path) -> None:
    """Refuse a sweep's folder that holds runs of another format; a result that cannot be read is trained again.

    Raises:
        UserError: names the first such run.
    """
    for path in sorted(out.glob(f"*/{RESULT}")):
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and "id" in found and found.get("format") != FORMAT:
            raise UserError(
                f"{path}: format {found.get('format')} is not this version's ({FORMAT}); use another out="
            )


def read_failures(root: Path) -> dict[str, str]:
    """Run id to reason, of the runs below a folder that failed."""
    return {
        p.parent.name: str(json.loads(p.read_text("utf-8")).get("reason", ""))
        for p in _find(root, ERROR)
    }


def _find(root: Path, name: str) -> Iterator[Path]:
    for folder, children, files in os.walk(root):
        children[:] = sorted(c for c in children if not c.startswith(".") and c != "adapter")
        if name in files:
            yield Path(folder) / name


def _read_result(path: Path) -> dict[str, Any] | None:
    """The content of a result.json; None where it is some other program's."""
    try:
        result = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); delete it and run the sweep again"
        ) from error
    if not isinstance(result, dict) or "format" not in result or "id" not in result:
        return None
    if result["format"] != FORMAT:
        raise UserError(f"{path}: format {result['format']} is not this version's ({FORMAT})")
    return result
