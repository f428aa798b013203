"""The house rules that a reader relies on: where things are, and how they are written."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pml_cli"
PACKAGES = sorted(p.parent for p in PACKAGE.rglob("__init__.py") if p.parent != PACKAGE)
MODULES = sorted(PACKAGE.rglob("*.py"))

# English that says nothing: `found` of what, `parts` of what. A name tells what it holds.
VAGUE = set(
    "found told one kept mine there its shown words own left asked known before after making "
    "made place places parts part whole said given wanted now again seen being apart few many most "
    "out at by here reach beside others other later sure alike rest extra cut share turn".split()
)


@cache
def trees():
    return {path: ast.parse(path.read_text("utf-8")) for path in MODULES}


@cache
def nodes():
    return [(path, node) for path, tree in trees().items() for node in ast.walk(tree)]


def name_of(path):
    return str(path.relative_to(ROOT))


def decorated_as_dataclass(node):
    decorators = [ast.unparse(d) for d in node.decorator_list]
    return next((d for d in decorators if re.match(r"(dataclasses\.)?dataclass\b", d)), None)


def registers_itself(tree):
    """Whether something in a module is decorated with `@register(...)` or `@figure(...)`."""
    decorators = [d for node in ast.walk(tree) for d in getattr(node, "decorator_list", [])]
    return any(re.match(r"(register|figure)\(", ast.unparse(d)) for d in decorators)


def test_contributing_lists_every_folder_and_no_other():
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    block = re.search(r"## Where things are\n+```\n(.*?)```", page, re.DOTALL)
    assert block, "CONTRIBUTING.md has no list of folders"
    listed = set(re.findall(r"^ *([\w/]+)/ ", block[1], re.MULTILINE))
    packages = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    folders = {"conf", "sweeps", "outputs", "docs", "benchmarks", "tests", "pml_cli"}
    assert listed == packages | folders


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_a_package_lists_its_files(package):
    text = ast.get_docstring(trees()[package / "__init__.py"]) or ""
    files = {p.stem for p in package.glob("*.py")} - {"__init__"}
    files |= {p.parent.name for p in package.glob("*/__init__.py")}
    listed = set(re.findall(r"^ {4}(\w+)(?:\.py|/) +\S", text, re.MULTILINE))
    # A loss, source, launcher or figure that registers itself is listed by the help.
    registered = {p.stem for p in package.glob("*.py") if registers_itself(trees()[p])}
    assert files - registered <= listed <= files


def test_dataclasses_are_built_by_name():
    for path, node in nodes():
        if isinstance(node, ast.ClassDef) and (decorator := decorated_as_dataclass(node)):
            assert "kw_only=True" in decorator, f"{name_of(path)}, line {node.lineno}"


def names_of_ours(tree):
    """What a module defines as a class, or imports from pml_cli."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pml_cli"):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_no_class_of_ours_is_built_from_more_than_four_positions():
    classes = {node.name for _, node in nodes() if isinstance(node, ast.ClassDef)}
    for path, tree in trees().items():
        ours = classes & names_of_ours(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                positions = len(node.args) if node.func.id in ours else 0
                assert positions <= 4, f"{name_of(path)}, line {node.lineno}"


def test_nothing_that_can_run_code_is_read_from_a_file():
    forbidden = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    for path, node in nodes():
        imported = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
        for module in imported:
            assert module.split(".")[0] not in forbidden, f"{name_of(path)}, line {node.lineno}"


def test_names_say_what_they_hold():
    names = Counter(
        node.id
        for _, node in nodes()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    vague = {name: count for name, count in names.items() if name in VAGUE}
    assert 1000 * sum(vague.values()) <= 20 * names.total(), vague


def test_no_test_imports_a_test():
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                last = node.module.rsplit(".", maxsplit=1)[-1]
                assert not last.startswith("test_"), f"{name_of(path)}, line {node.lineno}"
