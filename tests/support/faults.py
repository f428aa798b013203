"""Faults of the machine."""

import contextlib
import errno
import os
import resource
from pathlib import Path


@contextlib.contextmanager
def full_disk(room):
    """Inside, no file grows beyond so many bytes: the system refuses, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refuse_to_list(monkeypatch, folder):
    """Let a folder be entered but not listed, also by root."""

    def refusing(listing):
        def listed(path="."):
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return listing(path)

        return listed

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
