"""law.json, as `pml predict` and `pml sweep --design` read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from catalogue.case import Case
from catalogue.damage import GONE, VALUES, damaged_files, edit

DOOR = "law.json"
FILE = "runs/fit/law.json"
LENGTHS = ("predict", "runs", "seqlen=20", "--target", "loss=1")
BOTH = ("predict", "runs", "seqlen=20", "rank=4")
DESIGN = ("sweep", "rank=1,2", "seqlen=8,16", "--dry-run", "--design", "runs")

# Where a field lies: of the file, of its first group, of the group's chosen law.
FILE_FIELDS = ("groups", "draws", "x", "bits_lines")
GROUP_FIELDS = (
    *("name", "slug", "laws", "chosen", "recall", "range", "base_loss", "all_recall", "fit"),
    "tokens_per_sample",
)
LAW_FIELDS = ("form", "theta", "centre", "clusters", "status", "covariance", "covariance_clustered")
INNER_FIELDS = {
    ("range", "rank"),
    ("range", "length"),
    ("base_loss", "length"),
    ("base_loss", "nats"),
    ("base_loss", "texts"),
    ("recall", "status"),
    ("recall", "parameters"),
    ("recall", "blur"),
    ("recall", "reason"),
}
KINDS = (
    "gone",
    "null",
    "a word",
    "a list",
    "an empty list",
    "a mapping",
    "zero",
    "negative",
    "400 digits",
    "true",
)


def cases() -> Iterator[Case]:
    """All of them."""
    for name, change in damaged_files(FILE):
        yield _case(name, LENGTHS, change, codes=(2,))
        yield _case(f"design: {name}", DESIGN, change, codes=(2,))
    for field in FILE_FIELDS:
        yield from _damaged((field,))
    for field in GROUP_FIELDS:
        yield from _damaged(("groups", 0, field))
    for outer, inner in sorted(INNER_FIELDS):
        yield from _damaged(("groups", 0, outer, inner))
    for field in LAW_FIELDS:
        yield from _damaged(("groups", 0, "chosen law", field))
    for name, change in NUMBERS.items():
        for argv in (LENGTHS, BOTH):
            yield _case(f"{name}, {argv[-1]}", argv, edit(FILE, change))
    for value in (2, 3, 99, "4", None, [4]):
        change = edit(FILE, lambda tree, value=value: tree.update(format=value))
        yield _case(f"format {value!r}", LENGTHS, change, codes=(2,))


def _damaged(keys: tuple[str | int, ...]) -> Iterator[Case]:
    """One field with every wrong kind of value."""
    title = ".".join(map(str, keys))
    for name in KINDS:
        change = edit(FILE, lambda tree, name=name: _set(tree, keys, VALUES[name]))
        yield _case(f"{title} {name}", BOTH, change)


def _set(tree: Any, keys: tuple[str | int, ...], value: Any) -> None:
    for key in keys[:-1]:
        tree = _chosen(tree) if key == "chosen law" else tree[key]
    if value is GONE:
        tree.pop(keys[-1], None)
    else:
        tree[keys[-1]] = value


def _chosen(group: dict[str, Any]) -> dict[str, Any]:
    return next(law for law in group["laws"] if law["name"] == group["chosen"])


def _law(tree: Any) -> dict[str, Any]:
    return _chosen(tree["groups"][0])


def _fill(mapping: dict[str, Any], value: Any) -> None:
    for key in mapping:
        mapping[key] = value


def _draws(tree: Any) -> dict[str, Any]:
    return tree["draws"][tree["groups"][0]["slug"]]


# Numbers that are none, inside fields of the right type.
NUMBERS: dict[str, Any] = {
    "theta null": lambda tree: _fill(_law(tree)["theta"], None),
    "theta 1e308": lambda tree: _fill(_law(tree)["theta"], 1e308),
    "theta of words": lambda tree: _fill(_law(tree)["theta"], "x"),
    "an unknown link": lambda tree: _law(tree)["form"].update(link="nope"),
    "a link of a list": lambda tree: _law(tree)["form"].update(link=[1]),
    "an unknown field of a form": lambda tree: _law(tree)["form"].update(nope=1),
    "a centre of words": lambda tree: _fill(_law(tree)["centre"], "x"),
    "a covariance of another size": lambda tree: (
        tree.update(draws={}),
        _law(tree).update(covariance=[[1.0]]),
    ),
    "a covariance of words": lambda tree: (
        tree.update(draws={}),
        _law(tree).update(covariance=[["x"] * 8] * 8),
    ),
    "a covariance of 1e308": lambda tree: (
        tree.update(draws={}),
        _law(tree).update(covariance=[[1e308] * 8] * 8),
    ),
    "draws of unknown names": lambda tree: tree["draws"].update(
        {tree["groups"][0]["slug"]: {"nope": [1.0]}}
    ),
    "draws of words": lambda tree: _fill(_draws(tree), ["x"]),
    "negative draws": lambda tree: _fill(_draws(tree), [-1.0]),
    "draws that are empty": lambda tree: _fill(_draws(tree), []),
    "draws of a list": lambda tree: tree["draws"].update({tree["groups"][0]["slug"]: [1]}),
    "draws of null": lambda tree: _fill(_draws(tree), [None]),
    "a range of words": lambda tree: tree["groups"][0].update(
        range={"rank": ["a", "b"], "length": ["a", "b"]}
    ),
    "a range below 0": lambda tree: tree["groups"][0].update(
        range={"rank": [-4, -2], "length": [-4, -2]}
    ),
    "a range the wrong way": lambda tree: tree["groups"][0].update(
        range={"rank": [9, 1], "length": [9, 1]}
    ),
    "base losses of other lengths": lambda tree: tree["groups"][0]["base_loss"].update(
        length=[1.0], nats=[1.0, 2.0]
    ),
    "base losses below 0": lambda tree: tree["groups"][0]["base_loss"].update(
        length=[-1.0], nats=[-1.0]
    ),
    "base losses of words": lambda tree: tree["groups"][0]["base_loss"].update(nats=["x"]),
    "recall without numbers": lambda tree: tree["groups"][0]["recall"].update(
        status="OK", parameters={}
    ),
    "recall of words": lambda tree: tree["groups"][0]["recall"].update(
        status="OK", parameters={"a": "x", "g": 1, "h": 1}
    ),
    "recall of null": lambda tree: tree["groups"][0]["recall"].update(
        status="OK", parameters={"a": None, "g": 1, "h": 1}
    ),
    "a blur of words": lambda tree: tree["groups"][0]["recall"].update(
        blur={"rank": "x", "length": 1}
    ),
    "a name with an escape sequence": lambda tree: tree["groups"][0].update(
        name="\x1b]0;owned\x07"
    ),
    "groups of numbers": lambda tree: tree.update(groups=[5]),
    "groups of null": lambda tree: tree.update(groups=[None]),
    "lines of numbers": lambda tree: tree.update(bits_lines=[5]),
    "laws of numbers": lambda tree: tree["groups"][0].update(laws=[5]),
}


def _case(name: str, argv: tuple[str, ...], change: Any, codes: tuple[int, ...] = (0, 2)) -> Case:
    return Case(
        door=DOOR,
        name=name,
        argv=argv,
        base="law",
        change=change,
        codes=codes,
        says="law.json|runs",
    )
