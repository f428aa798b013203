"""Files of somebody else in a folder that a command is to write into: they are never replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pml_cli.errors import UserError
from pml_cli.report import folder_index
from pml_cli.report.figures.registry import SUFFIXES
from pml_cli.results.folder import RESULT
from pml_cli.results.output_folder import PML
from pml_cli.validation import load_json


def check_files(
    out: Path,
    names: Collection[str],
    inputs: Iterable[Path] = (),
    *,
    figures: Iterable[str] = (),
) -> None:
    """Refuse a folder in which a command would replace what is none of pml's.

    A folder that pml has written to is its own.

    Args:
        out: the folder; it need not exist.
        names: of the tables and folders that the command writes there.
        inputs: files that the command reads.
        figures: how the names of its figures begin: `law` stands for law.png and law-GROUP.png.

    Raises:
        UserError: a file of such a name is there in a folder that pml never wrote to, or is read
            by the command.
    """
    remedy = f"give another out= (it is {out})"
    for path in inputs:
        if path.name in names and path.resolve().parent == out.resolve():
            raise UserError(f"{path}: a file of this name is written there; {remedy}")

    taken = [name for name in names if (out / name).exists()]
    drawn = [name for beginning in figures for name in _figures(out, beginning)]
    if not (taken or drawn) or _is_written_by_pml(out, taken):
        return
    name = next(iter([*taken, *drawn]))
    reason = "a file of this name is written there" if taken else "figures are called so there"
    raise UserError(f"{out / name}: {reason}, and this one is none of pml's; {remedy}")


def _figures(out: Path, beginning: str) -> Iterator[str]:
    """The names of the figures in a folder that begin so."""
    for suffix in SUFFIXES:
        for path in (out / f"{beginning}.{suffix}", *out.glob(f"{beginning}-*.{suffix}")):
            if path.exists():
                yield path.name


def _is_written_by_pml(out: Path, taken: Iterable[str]) -> bool:
    """Whether runs, an index or a report of pml are in a folder.

    Args:
        taken: names of files that are there.
    """
    if (out / PML).is_dir() or folder_index.is_ours(out / folder_index.FILE_NAME):
        return True
    if any(out.glob(f"*/{RESULT}")):
        return True
    # Reports of earlier versions have no index.
    return any(name.endswith(".json") and _has_format(out / name) for name in taken)


def _has_format(path: Path) -> bool:
    try:
        content = load_json(path, "")
    except UserError:
        return False
    return isinstance(content, dict) and "format" in content
