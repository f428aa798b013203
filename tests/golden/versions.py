"""The pinned numbers and the tests on other versions of Python and of the libraries.

    python tests/golden/versions.py --lowest                      this Python, every lower bound
    python tests/golden/versions.py --pythons python3.10 python3.13   the newest releases
    ... --tests tests/law tests/training     fewer tests; none without a word: --tests

Each is a virtual environment of its own below `--place`, of several gigabytes where torch comes
with its CUDA libraries. Ends with 1 if a test fails or a number has moved.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

SHOWN = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "hydra-core",
    "omegaconf",
    "typer",
    "pandas",
    "numpy",
    "scipy",
    "pydantic",
)


def lower_bounds() -> str:
    """Constraints for pip: `torch>=2.10,<2.14` of pyproject.toml becomes `torch==2.10.*`."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = []
    for requirement in project["dependencies"]:
        name, bound = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
        lines.append(f"{name}=={bound}.*" if bound.count(".") < 2 else f"{name}=={bound}")
    return "\n".join(lines)


def environment(python: str, folder: Path, lowest: bool) -> Path:
    """Make a virtual environment with pml and its tests in it.

    Args:
        python: Command or path of the interpreter.
        folder: Where the environment goes; one that exists is brought up to date.
        lowest: The lower bound of every dependency, not the newest release.

    Returns:
        The interpreter of the environment.
    """
    subprocess.run([python, "-m", "venv", folder], check=True)
    inner = folder / "bin" / "python"

    install = [inner, "-m", "pip", "install", "-q", f"{ROOT}[test]"]
    if lowest:
        constraints = folder / "constraints.txt"
        constraints.write_text(lower_bounds())
        install += ["-c", constraints]
    subprocess.run(install, check=True)
    return inner


def report(python: Path) -> None:
    """Print which versions are in an environment."""
    code = (
        "import platform; from importlib.metadata import version;"
        f"print('python', platform.python_version(), *(f'{{n}} {{version(n)}}' for n in {SHOWN}))"
    )
    subprocess.run([python, "-c", code], check=True)


def check(python: Path, tests: list[str]) -> bool:
    """The pinned numbers, and the tests that were asked for."""
    variables = {**os.environ, "PYTHONPATH": "tests", "HF_HUB_OFFLINE": "1"}
    commands = [["golden"]]
    if tests:
        commands.append(["pytest", "-q", "-p", "no:cacheprovider", *tests])

    passed = True
    for words in commands:
        ended = subprocess.run([python, "-m", *words], cwd=ROOT, env=variables, check=False)
        passed &= ended.returncode == 0
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lowest", action="store_true", help="the lower bounds, not the newest")
    parser.add_argument("--pythons", nargs="*", default=[sys.executable], help="interpreters")
    parser.add_argument("--tests", nargs="*", default=["tests"], help="what pytest gets")
    parser.add_argument("--place", type=Path, help="folder of the environments")
    options = parser.parse_args()

    place = options.place or Path(tempfile.mkdtemp(prefix="pml-versions-"))
    passed = True
    for python in options.pythons:
        kind = "lowest" if options.lowest else "newest"
        folder = place / f"{kind}-{Path(python).name}"
        inner = environment(python, folder, options.lowest)
        report(inner)
        passed &= check(inner, options.tests)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
