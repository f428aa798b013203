"""The runs of one results folder, found by the hash in their ids.

An id is a readable front and a hash of what counts: `base-text-r4-l64-s0-6be364ffb6`. The front
changes with the name of a model, as where its folder was renamed; the run is the same.
"""

from __future__ import annotations

import re
from pathlib import Path

from pml_cli.results.folder import RunFolder

HASH = re.compile(r"[0-9a-f]{10}")


def run_key(run_id: str) -> str:
    """The hash in an id, which says whether two runs are the same; the id itself without one."""
    tail = run_id.rpartition("-")[2]
    return tail if HASH.fullmatch(tail) else run_id


class RunFolders:
    """The folders of runs in a results folder, as of the last listing.

    One listing is quicker than a look into each of thousands of folders that do not exist.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._names: set[str] = set()
        self._by_key: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """List the results folder anew, which need not exist yet."""
        names = {path.name for path in self.out.iterdir()} if self.out.is_dir() else set()
        if not names >= self._names:
            self._names, self._by_key = set(), {}

        # A worker lists before each pack: of thousands of names only the new ones are looked at.
        for name in names - self._names:
            key = run_key(name)
            # Versions that looked for whole ids may have left two folders of one run: the first
            # in the alphabet counts.
            self._by_key[key] = min(name, self._by_key.get(key, name))
        self._names = names

    def name(self, run_id: str) -> str:
        """The name of a run's folder: that of an existing one, else the id itself."""
        if run_id in self._names:
            return run_id
        return self._by_key.get(run_key(run_id), run_id)

    def find(self, run_id: str) -> RunFolder:
        """The folder of a run, which need not exist."""
        return RunFolder(self.out, self.name(run_id))

    def exists(self, run_id: str) -> bool:
        """Whether a run has a folder."""
        return self.name(run_id) in self._names
