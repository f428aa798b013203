"""Waiting threads spin a little, then sleep, unless the user has settled it."""

import os

from pml_cli.launch.openmp import SPIN_COUNT, share_cores


def settled(monkeypatch, **told):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    share_cores()
    return os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")


def test_what_the_user_has_settled_stays(monkeypatch):
    assert settled(monkeypatch) == ("PASSIVE", SPIN_COUNT)
    assert settled(monkeypatch, GOMP_SPINCOUNT="7") == ("PASSIVE", "7")
    assert settled(monkeypatch, OMP_WAIT_POLICY="PASSIVE") == ("PASSIVE", None)
    assert settled(monkeypatch, OMP_WAIT_POLICY="ACTIVE") == ("ACTIVE", None)
