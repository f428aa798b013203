"""Every script of benchmarks/ finds what it uses of pml; what they measure: test_speed.py, test_cost.py."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_can_be_imported(script, monkeypatch):
    monkeypatch.syspath_prepend(str(script.parent))  # they import one another
    before = set(sys.modules)
    assert runpy.run_path(str(script), run_name="imported")["__doc__"]
    for name in set(sys.modules) - before:
        if name in {path.stem for path in SCRIPTS}:
            del sys.modules[name]
