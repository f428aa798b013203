#!/usr/bin/env bash
# The pinned numbers and the tests, on the lowest and the highest versions that pml supports.
#
#   bash tests/golden/versions.sh                      every row of the table below
#   PYTHONS=3.13 bash tests/golden/versions.sh newest  one of them
#   TESTS="tests/law tests/training" bash ...          fewer tests; TESTS=none: the numbers alone
#
# Each row is a virtual environment of its own below $VERSIONS (default: a temporary folder), of
# several gigabytes where torch comes with its CUDA libraries.
set -euo pipefail
cd "$(dirname "$0")/../.."

kinds=${*:-lowest newest}
pythons=${PYTHONS:-3.10 3.11 3.12 3.13}
tests=${TESTS:-tests}
place=${VERSIONS:-$(mktemp -d)}

# pml-cli's lower bounds, as pip's constraints: "torch>=2.10,<2.14" becomes "torch==2.10.*".
# Releases that never existed for this Python are left to pip: see the table in docs.
lower_bounds() {
  "$1" - <<'PY'
import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for line in project["dependencies"]:
    name, bound = re.match(r"([A-Za-z0-9_-]+)>=([0-9.]+)", line).groups()
    print(f"{name}=={bound}.*" if bound.count(".") < 2 else f"{name}=={bound}")
PY
}

versions() {
  "$1" - <<'PY'
import platform
from importlib.metadata import version

names = "torch transformers peft hydra-core omegaconf typer pandas numpy scipy pydantic".split()
print("python", platform.python_version(), *(f"{name} {version(name)}" for name in names))
PY
}

for kind in $kinds; do
  for python in $pythons; do
    # Lower bounds are tried on one Python: the releases of then have no wheels for later ones.
    [ "$kind" = newest ] || [ "$python" = 3.11 ] || continue

    venv=$place/$kind-$python
    echo "== $kind, Python $python"
    [ -d "$venv" ] || "python$python" -m venv "$venv"
    run=$venv/bin/python

    if [ "$kind" = lowest ]; then
      lower_bounds "$run" >"$venv/constraints.txt"
      "$run" -m pip install -q ".[test]" -c "$venv/constraints.txt"
    else
      "$run" -m pip install -q --upgrade --upgrade-strategy eager ".[test]"
    fi

    versions "$run"
    PYTHONPATH=tests "$run" -m golden
    [ "$tests" = none ] || "$run" -m pytest -q -p no:cacheprovider $tests
  done
done
