"""Tracker: what each of them does, and how it remembers what it has."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from pml_cli.errors import UserError
from pml_cli.io import without_links
from pml_cli.track.mirrored_run import MirroredRun
from pml_cli.validation import read_regular

IDENTITY = re.compile(r"[0-9a-f]{16}")


class Tracker(ABC):
    """One project of a tracker, which takes runs whole.

    What it has is remembered in a file of identities beside its own, a line each: a run is in it
    once all of it is written. A run that a killed process has begun is begun anew.

    Attributes:
        project: its name in the tracker.
        out: the folder of its files, which exists.
    """

    name: ClassVar[str]
    """Name of the tracker, as given to `--to`."""

    packages: ClassVar[tuple[str, ...]]
    """What pip installs."""

    modules: ClassVar[tuple[str, ...]]
    """What is imported of them."""

    def __init__(self, project: str, out: Path) -> None:
        self.project = project
        self.out = out

    @abstractmethod
    def write(self, run: MirroredRun) -> None:
        """Write a run that is not there; what was begun of it before is removed.

        Raises:
            UserError: the tracker refuses it.
        """

    @property
    @abstractmethod
    def where(self) -> str:
        """Where the runs are, and how to look at them."""

    @property
    def _memory(self) -> Path:
        return self.out / f"mirrored-{self.project}.txt"

    def mirrored(self) -> set[str]:
        """The identities of the runs that it has.

        Raises:
            UserError: the tracker does not answer, or what is remembered cannot be read.
        """
        try:
            content, _ = read_regular(self._memory)
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise UserError(f"{self._memory}: {error.strerror or error}") from error
        # The last line of a killed process may be cut off: its run is begun anew.
        lines = content.decode("utf-8", "replace").splitlines()
        return {line for line in lines if IDENTITY.fullmatch(line)}

    def remember(self, run: MirroredRun) -> None:
        """Remember that all of a run is written."""
        without_links(self.out, self._memory.name)
        # A line of its own, also behind one that was cut off.
        with self._memory.open("a", encoding="utf-8") as file:
            file.write(f"\n{run.identity}\n")
