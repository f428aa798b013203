"""The results folder of a sweep: whether it can be used, and what to say when its disk refuses."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pml_cli.errors import UserError
from pml_cli.io import refused_path, temporary_path, without_links
from pml_cli.results.read import check_formats

# Where pml keeps its own files in a results folder.
PML = ".pml"


def check_output_folder(out: Path) -> None:
    """Check that runs can be written below a folder, which need not exist yet.

    Raises:
        UserError: it is a file, cannot be written, holds runs of another format, or links in place
            of pml's own folders.
    """
    existing = _nearest_folder(out)
    check_formats(out)

    # Here too, before any worker is started that would refuse it.
    for path in (out / PML, *(out / PML).glob("*")):
        without_links(path.parent, path.name)

    # os.access does not know of mounts that are read-only
    probe = temporary_path(existing / "pml")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"out={out}: cannot write below {existing} ({error.strerror})") from error


def _nearest_folder(out: Path) -> Path:
    """The folder itself, or the nearest one above that exists.

    Raises:
        UserError: a file or a link to nowhere is on the way, or it cannot be looked at.
    """
    try:
        parents = out.resolve().parents
        for path in (out, *out.parents):
            if path.is_symlink() and not path.exists():
                raise UserError(
                    f"out={out}: {path} is a dangling symbolic link to {path.readlink()}"
                )
        existing = next(path for path in (out, *parents) if path.exists())
    # Of a loop of links: Python before 3.13 raises a RuntimeError, later versions an OSError.
    except RuntimeError as error:
        raise UserError(f"out={out}: a loop of symbolic links") from error
    except OSError as error:
        is_ring = error.errno == errno.ELOOP
        reason = "a loop of symbolic links" if is_ring else error.strerror
        raise UserError(f"out={out}: {reason}") from error

    if not existing.is_dir():
        raise UserError(f"out={out}: {existing} is a file, a folder is needed")
    return existing


@contextmanager
def disk_faults(out: Path) -> Iterator[None]:
    """Turn what a disk refuses while results are written into a UserError.

    Args:
        out: named where the error names no file.
    """
    try:
        yield
    except OSError as error:
        path = refused_path(error) or out
        reason = error.strerror or error
        raise UserError(f"{path}: {reason}; what was finished is kept") from error
