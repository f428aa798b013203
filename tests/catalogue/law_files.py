"""law.json, as `pml predict` and `pml sweep --design` read it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

from catalogue.case import Case, Change
from catalogue.damage import KINDS, VALUES, damaged_files, edit, set_field

DOOR = "law.json"
FILE = "runs/fit/law.json"
LENGTHS = ("predict", "runs", "seqlen=20", "--target", "loss=1")
NEW_MODEL = ("predict", "runs", "seqlen=20", "base=2", "per_rank=512")
BOTH = ("predict", "runs", "seqlen=20", "rank=4")
DESIGN = ("sweep", "rank=1,2", "seqlen=8,16", "--dry-run", "--design", "runs")


def cases() -> Iterator[Case]:
    """All of them."""
    for name, change in damaged_files(FILE):
        yield _case(name, LENGTHS, change, codes=(2,))
        yield _case(f"design: {name}", DESIGN, change, codes=(2,))

    for keys in FIELDS:
        title = ".".join(map(str, keys))
        for kind in KINDS:
            change = edit(FILE, partial(_set, keys, VALUES[kind]))
            yield _case(f"{title} {kind}", BOTH, change)
    for name, (keys, value) in ODD.items():
        change = edit(FILE, partial(_set, keys, value))
        yield from _asked(name, change)
    for name, value in COVARIANCES.items():
        yield from _asked(name, edit(FILE, partial(_set_covariance, value)))

    for keys in LINE_FIELDS:
        for kind in KINDS:
            change = edit(FILE, partial(_set_in_line, keys, VALUES[kind]))
            yield _case(f"line {'.'.join(map(str, keys))} {kind}", NEW_MODEL, change)
    for name, (keys, value) in ODD_LINES.items():
        yield _case(f"line: {name}", NEW_MODEL, edit(FILE, partial(_set_in_line, keys, value)))

    for value in (2, 3, 99, "4", None, [4]):
        change = edit(FILE, partial(_set, ("format",), value))
        yield _case(f"format {value!r}", LENGTHS, change, codes=(2,))


def _asked(name: str, change: Change) -> Iterator[Case]:
    """Asked for a rank, and for a gain."""
    for argv in (LENGTHS, BOTH):
        yield _case(f"{name}, {argv[-1]}", argv, change)


def _set(keys: tuple[str | int, ...], value: Any, tree: Any) -> None:
    """Set a field, by keys that may begin with GROUP, LAW or DRAWS; `*`: every field there."""
    group = tree["groups"][0]
    starts = {
        GROUP: group,
        LAW: next(law for law in group["laws"] if law["name"] == group["chosen"]),
        DRAWS: tree["draws"][group["slug"]],
    }
    if keys[0] in starts:
        tree = starts[keys[0]]
        keys = keys[1:]

    *outer, last = keys
    if last != "*":
        set_field(tree, keys, value)
        return
    for key in outer:
        tree = tree[key]
    tree.update(dict.fromkeys(tree, value))


def _set_covariance(value: Any, tree: Any) -> None:
    """Bands come from the covariance where there are no draws."""
    _set((LAW, "covariance"), value, tree)
    tree["draws"] = {}


def _set_in_line(keys: tuple[str | int, ...], value: Any, tree: Any) -> None:
    """Add a sound line of parameters against bits, and set a field of it."""
    line = copy.deepcopy(LINE)
    set_field(line, keys, value)
    tree["bits_lines"] = [line]


# Where keys begin: in the file's first group, its chosen law, its draws.
GROUP = "group"
LAW = "chosen law"
DRAWS = "its draws"

FIELDS: tuple[tuple[str | int, ...], ...] = (
    ("groups",),
    ("draws",),
    ("x",),
    ("bits_lines",),
    (GROUP, "name"),
    (GROUP, "slug"),
    (GROUP, "laws"),
    (GROUP, "chosen"),
    (GROUP, "recall"),
    (GROUP, "range"),
    (GROUP, "base_loss"),
    (GROUP, "all_recall"),
    (GROUP, "fit"),
    (GROUP, "tokens_per_sample"),
    (GROUP, "base_loss", "length"),
    (GROUP, "base_loss", "nats"),
    (GROUP, "base_loss", "texts"),
    (GROUP, "range", "length"),
    (GROUP, "range", "rank"),
    (GROUP, "recall", "blur"),
    (GROUP, "recall", "parameters"),
    (GROUP, "recall", "reason"),
    (GROUP, "recall", "status"),
    (LAW, "form"),
    *((LAW, "form", name) for name in ("link", "offset", "floor", "level", "beta")),
    (LAW, "theta"),
    (LAW, "centre"),
    (LAW, "clusters"),
    (LAW, "status"),
    (LAW, "covariance"),
    (LAW, "covariance_clustered"),
)

# What is wrong inside fields of the right type.
ODD: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "theta null": ((LAW, "theta", "*"), None),
    "theta 1e308": ((LAW, "theta", "*"), 1e308),
    "theta of words": ((LAW, "theta", "*"), "x"),
    "an unknown link": ((LAW, "form", "link"), "nope"),
    "a link of a list": ((LAW, "form", "link"), [1]),
    "an unknown field of a form": ((LAW, "form", "nope"), 1),
    "a centre of words": ((LAW, "centre", "*"), "x"),
    "draws of unknown names": ((DRAWS, "nope"), [1.0]),
    "draws of words": ((DRAWS, "*"), ["x"]),
    "negative draws": ((DRAWS, "*"), [-1.0]),
    "draws that are empty": ((DRAWS, "*"), []),
    "draws of null": ((DRAWS, "*"), [None]),
    "a range of words": ((GROUP, "range", "*"), ["a", "b"]),
    "a range below 0": ((GROUP, "range", "*"), [-4, -2]),
    "a range the wrong way": ((GROUP, "range", "*"), [9, 1]),
    "base losses of other lengths": ((GROUP, "base_loss", "nats"), [1.0, 2.0]),
    "no base losses": ((GROUP, "base_loss"), {"length": [], "nats": [], "texts": []}),
    "base losses below 0": ((GROUP, "base_loss", "*"), [-1.0]),
    "base losses of words": ((GROUP, "base_loss", "nats"), ["x"]),
    "recall without numbers": ((GROUP, "recall", "parameters"), {}),
    "recall of words": ((GROUP, "recall", "parameters", "*"), "x"),
    "recall of null": ((GROUP, "recall", "parameters", "*"), None),
    "a blur of words": ((GROUP, "recall", "blur"), {"rank": "x", "length": 1}),
    "a name with an escape sequence": ((GROUP, "name"), "\x1b]0;owned\x07"),
    "groups of numbers": (("groups",), [5]),
    "groups of null": (("groups",), [None]),
    "lines of numbers": (("bits_lines",), [5]),
    "laws of numbers": ((GROUP, "laws"), [5]),
}
# Parameters against bits, which a report of two models or placements has.
LINE: dict[str, Any] = {
    "loss": "sft",
    "size": "effective",
    "c": 2.4,
    "s": 0.93,
    "s_low": 0.8,
    "s_high": 1.1,
    "log_bits": 6.0,
    "level": 6.5,
    "covariance": [[0.01, 0.0], [0.0, 0.002]],
    "between": 0.1,
    "same_level_p": 0.4,
    "same_exponent_p": None,
    "least_bits": 100.0,
    "most_bits": 2000.0,
    "texts": 5,
    "outside": 0,
    "groups": [
        {
            "name": name,
            "texts": 5,
            "ratio": 1.02,
            "low": 0.9,
            "high": 1.2,
            "exponent": 0.9,
            "exponent_error": 0.1,
        }
        for name in ("tiny", "smollm2")
    ],
}
LINE_FIELDS: tuple[tuple[str | int, ...], ...] = (
    *((key,) for key in LINE),
    *(("groups", 0, key) for key in LINE["groups"][0]),
)
ODD_LINES: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "a covariance below 0": (("covariance",), [[-1.0, 0.0], [0.0, -1.0]]),
    "a covariance of one row": (("covariance",), [[1.0, 0.0]]),
    "a covariance of 1e308": (("covariance",), [[1e308, 0.0], [0.0, 1e308]]),
    "a level beyond any number": (("level",), 9999.0),
    "an exponent beyond any number": (("s",), 9999.0),
    "one group": (("groups",), LINE["groups"][:1]),
    "no group": (("groups",), []),
    "bits that are none": (("least_bits",), 0),
}
COVARIANCES: dict[str, list[list[Any]]] = {
    "a covariance of another size": [[1.0]],
    "a covariance of words": [["x"] * 8] * 8,
    "a covariance of 1e308": [[1e308] * 8] * 8,
}


def _case(
    name: str, argv: tuple[str, ...], change: Change, codes: tuple[int, ...] = (0, 2)
) -> Case:
    return Case(
        door=DOOR,
        name=name,
        argv=argv,
        base="law",
        change=change,
        codes=codes,
        says="law.json|runs",
    )
