"""Faults of the machine."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk(room):
    """Inside, no file grows beyond so many bytes: the system refuses, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
