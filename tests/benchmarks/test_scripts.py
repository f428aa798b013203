"""Every script of benchmarks/ can be imported; what they measure: test_speed.py, test_cost.py."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_can_be_imported(script, monkeypatch):
    # They import one another.
    monkeypatch.syspath_prepend(str(script.parent))
    loaded = set(sys.modules)
    assert runpy.run_path(str(script), run_name="imported")["__doc__"]

    scripts = {path.stem for path in SCRIPTS}
    for name in set(sys.modules) - loaded:
        if name in scripts:
            del sys.modules[name]
