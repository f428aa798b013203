"""The run folder: every path of one run.

`outputs/<sweep>/<id>/` holds config.yaml, env.json, tokens.parquet, curve.parquet, adapter/,
samples.jsonl and, written last, result.json: it exists when, and only when, the run is done.
error.json stands in its place when the run failed. Every file is complete or absent.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pml_cli.config.schema import FORMAT
from pml_cli.errors import UserError, printable
from pml_cli.io import (
    atomic_write,
    flush_to_disk,
    named_for,
    own_folder,
    remove,
    remove_leftovers,
    temporary_path,
    write_json,
    write_text,
)
from pml_cli.results.fields import Environment, Failure, ResultFields
from pml_cli.validation import read_json

if TYPE_CHECKING:
    # It takes half a second to import; `pml status` does without.
    import pandas as pd

RESULT = "result.json"
ERROR = "error.json"
ADAPTER = "adapter"
SCRIPT = "script.py"

# How it begins, so that it can be called from anywhere: the weights lie beside it.
BESIDE_SCRIPT = "import os\n\nos.chdir(os.path.dirname(os.path.abspath(__file__)))\n\n"

# Within a results folder: runs that were trained again since they had learned other tokens.
REPLACED = ".replaced"


class RunFolder:
    """Owns every path of one run.

    Attributes:
        id: the run id.
        path: the folder.
        config: the settings, as YAML.
        env: versions, device and a hash of the tokens.
        tokens: scores of each token at the logged steps, (logged steps x tokens) rows.
        curve: one row a step.
        samples: one row a sample: prompt, target, what was decoded (`results.samples`); older runs
            have none.
        adapter: the trained adapter, in PEFT's format.
        result: the numbers of a finished run.
        error: why a run failed.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        self.id = run_id
        self.path = Path(root) / run_id
        self.config = self.path / "config.yaml"
        self.env = self.path / "env.json"
        self.tokens = self.path / "tokens.parquet"
        self.curve = self.path / "curve.parquet"
        self.samples = self.path / "samples.jsonl"
        self.adapter = self.path / ADAPTER
        self.result = self.path / RESULT
        self.error = self.path / ERROR

    def is_done(self, tokens: str = "") -> bool:
        """Whether there is a complete result of this format; one that cannot be read is none.

        Args:
            tokens: hash of the tokens that the run is to learn, as `tokens_hash` gives it: a result
                of others is none. Empty: of any.
        """
        try:
            result = read_json(self.result, ResultFields, "")
        except UserError:
            return False
        has_result = result["format"] == FORMAT
        return has_result and (not tokens or self._has_learned(tokens))

    def _has_learned(self, tokens: str) -> bool:
        """Whether env.json names these tokens, or none: the first versions did not write them."""
        if not os.path.lexists(self.env):
            return True
        try:
            environment = read_json(self.env, Environment, "")
        # A damaged file: what the run has learned is not known.
        except UserError:
            return False
        return environment.get("tokens") in (None, tokens)

    def has_ended(self, tokens: str = "", *, fresh: bool = False) -> bool:
        """Whether the run is done or has failed.

        Args:
            tokens: as in `is_done`.
            fresh: ask the file server instead of this machine's cache of the folders (NFS).
        """
        if fresh:
            _revalidate(self.path.parent)
            _revalidate(self.path)
        return self.error.exists() or self.is_done(tokens)

    def make_room(self, tokens: str) -> None:
        """Set a finished run aside that has learned other tokens than these.

        Args:
            tokens: as in `is_done`.
        """
        if self.is_done() and not self.is_done(tokens):
            self._set_aside()

    def begin(self, tokens: str) -> None:
        """Make a folder to be filled by the process that has claimed the run, and by no other.

        A link in its place is removed: it could lead out of the results folder.

        Args:
            tokens: as in `is_done`.
        """
        self.make_room(tokens)
        if self.path.is_symlink():
            self.path.unlink()
        for path in (self.config, self.env, self.tokens, self.curve, self.samples):
            remove_leftovers(path)
        for path in (self.adapter, self.result, self.error):
            remove_leftovers(path)

    def forget_failure(self) -> None:
        """Remove error.json, or a link in place of the folder."""
        if self.path.is_symlink():
            self.path.unlink()
        self.error.unlink(missing_ok=True)

    def _set_aside(self) -> None:
        """Move the folder to `.replaced`, where reports do not look."""
        shelf = own_folder(self.path.parent, REPLACED)
        for number in itertools.count(1):
            target = shelf / f"{self.id}-{number}"
            if not os.path.lexists(target):
                break
        # Of several processes one moves it.
        with suppress(FileNotFoundError):
            self.path.rename(target)

    def failure(self) -> str | None:
        """Why the run failed; None if it did not."""
        if not os.path.lexists(self.error):
            return None
        try:
            error = read_json(self.error, Failure, "")
        except UserError:
            return "error.json cannot be read"
        return printable(error.get("reason", ""))

    def write_text(self, path: Path, text: str) -> None:
        """Write one of the run's text files."""
        write_text(path, text)

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Write one of the run's JSON files.

        Raises:
            ValueError: the content holds nan or infinity.
        """
        write_json(path, content)

    def write_table(self, path: Path, table: pd.DataFrame) -> None:
        """Write a parquet file of the columns; the index is dropped."""
        import pyarrow
        from pyarrow import parquet

        # Column by column takes half the time of DataFrame.to_parquet.
        arrays = {name: table[name].to_numpy() for name in table}
        columns = pyarrow.table(arrays)

        def write(temporary: Path) -> None:
            parquet.write_table(columns, temporary, compression="zstd")

        atomic_write(path, write)

    def write_adapter(self, save: Callable[[Path], None]) -> None:
        """Replace the adapter's folder.

        Args:
            save: fills the folder that it is given.
        """
        _replace_folder(self.adapter, save)

    def finish(self, result: dict[str, Any]) -> None:
        """Record the result: the last write of a successful run.

        What was written before is on the disk by then, also where the power goes.

        Args:
            result: the body of result.json.

        Raises:
            ValueError: the result holds nan or infinity.
        """
        # An earlier attempt may have failed.
        self.error.unlink(missing_ok=True)

        flush_to_disk(path for path in self.path.rglob("*") if path.is_file())
        header = {"format": FORMAT, "id": self.id}
        write_json(self.result, header | result, durable=True)

    def fail(self, reason: str, detail: str = "") -> None:
        """Record a failure.

        Args:
            reason: one line.
            detail: the traceback.
        """
        content = {"format": FORMAT, "id": self.id, "reason": reason, "detail": detail}
        self.write_json(self.error, content)


def copy_adapter(folder: RunFolder, out: Path, script: str | None) -> None:
    """Copy the adapter of a run, with its README.md, to adapter/ of a results folder.

    Args:
        folder: of the run.
        out: the results folder.
        script: of the README.md, which becomes a file; None: there is none.
    """

    def copy(temporary: Path) -> None:
        shutil.copytree(folder.adapter, temporary, dirs_exist_ok=True)
        if script is not None:
            write_text(temporary / SCRIPT, BESIDE_SCRIPT + script)

    _replace_folder(out / ADAPTER, copy)


def _replace_folder(target: Path, save: Callable[[Path], None]) -> None:
    """Fill a folder aside, then put it in the place of another.

    Raises:
        OSError: the disk refuses; it names `target`.
    """
    temporary = temporary_path(target)
    temporary.mkdir(parents=True)

    try:
        save(temporary)
        # A folder cannot be replaced by a rename unless it is empty.
        remove(target)
        temporary.replace(target)
    except OSError as error:
        raise named_for(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def writable_folder(out: Path) -> Path:
    """A folder for a report, created where it is missing.

    Raises:
        UserError: it cannot be created or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot make this folder ({error.strerror})") from error

    if not os.access(out, os.W_OK):
        raise UserError(f"out={out}: no permission to write there")
    return out


def _revalidate(folder: Path) -> None:
    """Opening a folder makes an NFS client compare its cache with the server (close-to-open)."""
    with suppress(OSError):
        os.close(os.open(folder, os.O_RDONLY))


def beside(folder: Path, name: str) -> Path:
    """Where a report of a folder goes: a folder of that name in it, and beside that of a run.

    Nothing is added to the folder of a run, which is complete.

    Args:
        folder: of runs, or of one.
        name: of the report: fit.
    """
    if not (folder / RESULT).exists():
        return folder / name
    # What has no name of its own: `.` and `..`.
    run = folder.resolve() if folder.name in ("", "..") else folder
    return run.parent / f"{run.name}-{name}"
