"""Sweep files, and folders of options of a user's own."""

from __future__ import annotations

from collections.abc import Iterator

from catalogue.case import Case
from catalogue.damage import BYTES, both, damaged_paths, put

FILES = "sweep files"
OPTIONS = "folders of options"
RUN = ("sweep", "-f", "s.yaml", "--dry-run")

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

TEXTS: dict[str, str | bytes] = {
    "broken": "rank: [4, 8\n",
    "a tab": "rank:\n\t- 4\n",
    "only a comment": "# x\n",
    "a word": "rank\n",
    "two documents": "rank: 4\n---\nrank: 8\n",
    "a key twice": "rank: 4\nrank: 8\n",
    "a key nested and dotted": "train.lr: 0.1\ntrain: {lr: 0.2}\n",
    "a call": "rank: !!python/object/apply:os.system ['touch CODE_WAS_RUN']\n",
    "a name of Python": "rank: !!python/name:os.system\n",
    "a module of Python": "rank: !!python/module:os\n",
    "an unknown tag": "rank: !x 4\n",
    "an undefined alias": "rank: *x\n",
    "an alias of itself": "rank: &a [*a]\n",
    "a mapping that holds itself": "rank: &a {b: *a}\n",
    "a billion laughs": LAUGHS,
    "a merge of a number": "<<: 5\nrank: 4\n",
    "nested lists": "rank: " + "[" * 2000 + "]" * 2000 + "\n",
    "nested mappings": "rank: " + "{a: " * 2000 + "1" + "}" * 2000 + "\n",
    "nested blocks": "".join(f"{' ' * depth}a:\n" for depth in range(1500)),
    "latin-1": "out: caf\xe9\n".encode("latin-1"),
    "a date": "rank: 2020-01-01\n",
    "a date that is none": "rank: 2020-13-45\n",
    "a tagged date of letters": "rank: !!timestamp x\n",
    "a tagged integer of letters": "rank: !!int abc\n",
    "a tagged number of letters": "rank: !!float abc\n",
    "a tagged truth of letters": "rank: !!bool x\n",
    "tagged bytes": "rank: !!binary aGk=\n",
    "tagged bytes that are none": "rank: !!binary x\n",
    "a tagged set": "rank: !!set {4, 8}\n",
    "a tagged order": "rank: !!omap [a: 1]\n",
    "a number of 5,000 digits": "rank: " + "9" * 5000 + "\n",
    "a key that is a list": "? [a]\n: 4\n",
    "a key that is a mapping": "? {a: 1}\n: 4\n",
    "a key that is a number": "1: 4\n",
    "a key that is null": "null: 4\n",
    "a null rank": "rank: null\n",
    "no values": "rank: []\n",
    "a list in a list": "rank: [[1, 2]]\n",
    "an empty mapping": "rank: {}\n",
    "a zero byte in a path": 'out: "a\\0b"\n',
    "a zero byte in a quoted path": "out: \"'a\\0b'\"\n",
    "a zero byte in data.path": "data: text\ndata.path: \"'a\\0b'\"\n",
    "a zero byte in model.path": "model: hf\nmodel.path: \"'a\\0b'\"\n",
    "an escape sequence in a path": "data: text\ndata.path: \"'\\e[31mx'\"\n",
    "an escape sequence in a key": '"\\e[31mrank": 4\n',
    "a lone surrogate": 'out: "\\ud800"\n',
    "a lone surrogate in a prompt": "data: text\ndata.prompt: \"'\\ud800'\"\n",
    "a home of nobody": "out: '\"~nosuchuser/x\"'\n",
    "grids that are a number": "grids: 5\n",
    "no grids": "grids: []\n",
    "grids of numbers": "grids: [5]\n",
    "grids that are a mapping": "grids: {a: 1}\n",
    "an unknown key in a grid": "grids: [{rnak: 4}]\n",
    "two folders": "out: [a, b]\n",
    "a missing value": "rank: ???\n",
    "an interpolation": "rank: ${nope}\n",
    "an interpolation of itself": "rank: ${rank}\n",
    "a broken interpolation": "rank: ${\n",
    "keys of hydra": "hydra: {run: {dir: /tmp/x}}\nrank: 4\n",
    "defaults": "defaults: [model: tiny]\nrank: 4\n",
    "a target": "_target_: os.system\nrank: 4\n",
    "a target in a group": "model: {_target_: os.system}\n",
    "an unknown option": "model: tniy\n",
    "an unknown key of a group": "model: {nmae: x}\n",
    "an option that is a number": "model: 5\n",
    "an option that is null": "model: null\n",
    "an option that is true": "data: true\n",
    "a tilde": "~\n",
    "an include": "rank: !include other.yaml\n",
}

# Wrong content of an option of a group: model/mine.yaml.
OPTION_TEXTS: dict[str, str | bytes] = {
    "broken": "name: [\n",
    "a number": "5\n",
    "a list": "- name\n",
    "an unknown key": "nope: 1\n",
    "a wrong value": "path: tiny\nlayer: x\n",
    "a target": "_target_: os.system\n",
    "a call": "name: !!python/object/apply:os.system [touch CODE_WAS_RUN]\n",
    "defaults elsewhere": "defaults: [/nowhere]\n",
    "defaults of itself": "defaults: [mine]\n",
    "bytes": b"\xff\xfe\x00",
    "a key twice": "name: a\nname: b\n",
    "a variable that is not there": "name: ${oc.env:NO_SUCH_VARIABLE}\npath: tiny\n",
    "an alias of itself": "name: &a [*a]\n",
    "nested deep": "name: " + "[" * 2000 + "]" * 2000 + "\n",
    "a date that is none": "name: 2020-13-45\n",
    "a number of 5,000 digits": "layer: " + "9" * 5000 + "\n",
    "a tagged integer of letters": "layer: !!int abc\n",
    "hydra's own keys": "hydra: {run: {dir: /tmp/x}}\n",
    "a merge of a number": "<<: 5\n",
}
# These Hydra reads as texts, and a name may be one.
HARMLESS_OPTIONS = ("a date that is none",)
# A home of nobody is a folder like any other, as in a shell.
HARMLESS_FILES = ("a home of nobody",)

DEFAULTS = """defaults:
  - model: tiny
  - data: random
  - adapter: mlp_block
  - loss: sft
  - train: default
  - launch: inline
  - _self_
"""
ROOT_TEXTS: dict[str, str | bytes] = {
    "an unknown key": "nope: 1\n",
    "a list": "- 1\n",
    "broken": "rank: [\n",
    "a number": "5\n",
    "bytes": b"\xff\xfe\x00",
    "a wrong value": "rank: x\n",
    "nested deep": "rank: " + "[" * 2000 + "]" * 2000 + "\n",
    "an alias of itself": "rank: &a [*a]\n",
    "a date that is none": "rank: 2020-13-45\n",
}


def cases() -> Iterator[Case]:
    """Of both doors."""
    whole = {name: text for name, text in BYTES.items() if name != "a list of numbers"}
    for name, text in {**whole, **TEXTS}.items():
        change = put("s.yaml", text)
        says = r"s\.yaml|no such key|out|rank|rnak|data|model|hydra|defaults|_target_|\b1\b"
        codes = (0, 2) if name in HARMLESS_FILES else (2,)
        yield Case(door=FILES, name=name, argv=RUN, change=change, codes=codes, says=says)

    for name, damage in damaged_paths("s.yaml"):
        change = both(put("s.yaml", "rank: 4\n"), damage)
        yield Case(door=FILES, name=name, argv=RUN, change=change, says=r"s\.yaml")

    yield from _options()


def _options() -> Iterator[Case]:
    argv = ("sweep", "--config-dir", "c", "model=mine", "--dry-run")
    for name, text in OPTION_TEXTS.items():
        change = put("c/model/mine.yaml", text)
        says = "mine|model|sweep"
        codes = (0, 2) if name in HARMLESS_OPTIONS else (2,)
        yield Case(door=OPTIONS, name=name, argv=argv, change=change, codes=codes, says=says)

    for command in ("sweep", "memft", "fit", "lasting", "memorize", "capacity"):
        for name, text in ROOT_TEXTS.items():
            change = put(f"c/{command}.yaml", text)
            more = ("/etc/hostname",) if command == "memorize" else ()
            dry = ("--dry-run",) if command in ("sweep", "memft", "capacity") else ()
            argv = (command, *more, "--config-dir", "c", *dry)
            title = f"{command}.yaml: {name}"
            yield Case(
                door=OPTIONS, name=title, argv=argv, change=change, says=f"{command}|rank|nope"
            )

    for command in ("sweep", "memft", "memorize", "capacity"):
        for name in ("an unknown key", "a wrong value", "a date that is none"):
            change = put(f"c/{command}.yaml", f"{DEFAULTS}{ROOT_TEXTS[name]}")
            more = ("/etc/hostname",) if command == "memorize" else ("--dry-run",)
            argv = (command, *more, "--config-dir", "c")
            title = f"{command}.yaml: {name} beside its defaults"
            says = rf"{command}\.yaml|rank|nope"
            yield Case(door=OPTIONS, name=title, argv=argv, change=change, says=says)

    text = f"{DEFAULTS}facts: [1]\ntexts: [1]\n"
    argv = ("memorize", "/etc/hostname", "--config-dir", "c")
    title = "memorize.yaml: a list for a kind of data"
    change = put("c/memorize.yaml", text)
    yield Case(door=OPTIONS, name=title, argv=argv, change=change, says="must be a mapping")

    source = put("c/data/mine.yaml", "seed: 1\n")
    argv = ("sweep", "--config-dir", "c", "data=mine", "--dry-run")
    argv = ("sweep", "--config-dir", "c", "data=mine", "--dry-run")
    yield Case(door=OPTIONS, name="no source", argv=argv, change=source, says="source")
