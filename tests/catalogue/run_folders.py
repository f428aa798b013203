"""What lies in the folder of a run, and what was measured of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from catalogue.case import Case, Change
from catalogue.damage import (
    VALUES,
    both,
    damaged_field,
    damaged_files,
    edit,
    first,
    put,
    remove,
    rewrite,
    set_field,
    with_value,
)
from catalogue.folders import PROBE, SWEEP

RESULT = "result.json"
TOKENS = "tokens.parquet"
CONFIG = "config.yaml"
ENVIRONMENT = "env.json"
ADAPTER = "adapters"
MEASURED = "lasting.json"

FIT = ("fit", "runs", "draws=0", "figures=false")
TRANSITION = ("transition", "runs", "figures=false")
LASTING = ("lasting", "runs", "tokens=0", "decode=false", "figures=false")
AGAIN = ("sweep", *SWEEP, "out=runs")

RESULTS = "runs/*/result.json"
TABLE = "runs/*/tokens.parquet"
ADAPTERS = "runs/*/adapter"

# Fields of result.json that reports compute with.
NUMBERS = (
    *("rank", "target_tokens", "seqlen", "samples", "steps", "data_seed", "seed", "layer", "lr"),
    *("base_loss", "final_loss", "delta_loss", "exact_match", "trainable_parameters"),
    *("first_failure", "bits_memorised", "token_accuracy", "free_accuracy"),
)
TEXTS = ("model", "data", "adapter", "loss", "setting", "id")
# What no number is, and what no text is.
NO_NUMBERS = ("a word", "an empty text", "a list", "a mapping", "400 digits", "an escape sequence")
NO_TEXTS = ("a list", "a mapping", "zero", "true", "400 digits")
# Numbers that are odd: a report may leave the run out, or go on with it.
ODD = ("gone", "null", "zero", "negative", "a half", "1e308", "NaN", "infinite", "true")
# Fewer of them for the texts.
ODD_TEXTS = ("gone", "null", "an empty text")

# Values of config.yaml, by their keys.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "train.clip": (10**400,),
    "loss.keep": (10**400,),
    "rank": ("x", 0, -1, 10**12, None, [1], 1.5, True),
    "seqlen": ("x", 0, -1, 10**9, 2**40, 10**400, None, [1]),
    "seed": ("x", -1, None, [0]),
    "model": ([1], "x", None, 5),
    "model.path": (5, None, "/nowhere", [1], "a" * 5000),
    "model.dtype": ("float99", "load", 5, None),
    "model.layer": (99, -1, "x", [1]),
    "model.weights": ("nope", 5),
    "model.trust_remote_code": ("x", 5),
    "model.nope": (1,),
    "data": ([1], "x", None),
    "data.seed": ("x", -1, None),
    "data.source": ("nope", ["random"], None, 5, "text"),
    "adapter": ("x", None, []),
    "adapter.kind": ("linear", "nope", 5, None),
    "adapter.dropout": ("x", 2, -1, 10**400),
    "loss.kind": ("nope", 5),
    "train.steps": ("x", 0, None),
    "train.lr": ("x", -1, 10**400),
}


def cases() -> Iterator[Case]:
    """Of all doors."""
    yield from _results()
    yield from _tokens()
    yield from _configs()
    yield from _environments()
    yield from _adapters()
    yield from _measured()


def _results() -> Iterator[Case]:
    for name, change in damaged_files(RESULTS):
        is_absent = name in ("missing", "a folder")
        codes = (0, 2) if is_absent or name in OTHER_PROGRAMS else (2,)
        yield _fit(name, change, codes)
        yield _again(RESULT, name, change)
        if name not in PLAIN_BYTES:
            yield _read_again(name, change, codes)

    for field, kind, codes in _fields():
        change = with_value(RESULTS, (field,), VALUES[kind])
        says = f"result.json.*{field}" if codes == (2,) else ""
        yield _fit(f"{field} {kind}", change, codes, says)
    for value in ("2", "1", [1], None, 1.5):
        change = with_value(RESULTS, ("format",), value)
        yield _fit(f"format {value!r}", change, (2,), "format")

    for field in ("rank", "target_tokens", "base_loss", "model", "id", "samples"):
        for kind in ("a list", "a mapping", "gone"):
            change = with_value(RESULTS, (field,), VALUES[kind])
            codes = (0, 2) if kind == "gone" else (2,)
            yield _transition(RESULT, f"{field} {kind}", change, codes, "runs")
            yield _read_again(f"{field} {kind}", change, codes)
            yield _again(RESULT, f"{field} {kind}", change)

    # Without them a run belongs to no group of a table.
    for field in ("model", "data", "data_seed", "adapter", "layer", "loss", "rank", "seed", "lr"):
        change = with_value(RESULTS, (field,), None)
        yield _read_again(f"{field} null", change, codes=(0, 2))

    for field in ("rank", "steps_run", "base_loss", "exact_match", "bits_gained", "seconds"):
        for kind in ("gone", "null", "NaN", "a list"):
            change = with_value(RESULTS, (field,), VALUES[kind])
            title = f"probe again: {field} {kind}"
            yield _case(RESULT, title, PROBE, "probed", change, codes=(0, 2), says="runs|gain")

    yield from _failed()


def _fit(
    name: str,
    change: Change,
    codes: tuple[int, ...],
    says: str = "runs",
) -> Case:
    return _case(
        RESULT,
        f"fit: {name}",
        FIT,
        "planted",
        change,
        codes=codes,
        says=says,
    )


def _read_again(name: str, change: Change, codes: tuple[int, ...]) -> Case:
    """result.json, read by `pml lasting`."""
    return _case(
        RESULT,
        f"lasting: {name}",
        LASTING,
        "swept",
        change,
        codes=codes,
    )


def _again(door: str, name: str, change: Change) -> Case:
    """The sweep is run again, and may train the cell anew."""
    return _case(
        door,
        f"sweep again: {name}",
        AGAIN,
        "swept",
        change,
        codes=(0, 1, 2),
    )


def _transition(
    door: str,
    name: str,
    change: Change,
    codes: tuple[int, ...] = (0, 2),
    says: str = "tokens.parquet|left out|runs",
    *,
    always: bool = False,
) -> Case:
    return _case(
        door,
        f"transition: {name}",
        TRANSITION,
        "swept",
        change,
        codes=codes,
        says=says,
        always=always,
    )


# Without these four kinds a door would be tried a dozen times for the same reason.
PLAIN_BYTES = ("blank", "zeros", "UTF-16", "an HTML page", "a pointer of git lfs", "a byte short")
# Another program's file of this name is passed over.
OTHER_PROGRAMS = ("a list", "a list of numbers", "null", "a number", "a text", "true")


def _fields() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """A field, the kind of its wrong value, and the right exit codes."""
    for field in NUMBERS:
        for name in NO_NUMBERS:
            # A run with an adapter at several layers lists them.
            is_right = (field, name) == ("layer", "a list")
            yield field, name, (0,) if is_right else (2,)
        for name in ODD:
            yield field, name, (0, 2)

    for field in TEXTS:
        for name in NO_TEXTS:
            yield field, name, (2,)
        for name in ODD_TEXTS:
            yield field, name, (0, 2)


def _failed() -> Iterator[Case]:
    """Folders of failures alone."""
    contents = {
        "truncated": '{"reason": ',
        "a list": "[]",
        "empty": "",
        "a reason of lists": '{"reason": [1]}',
        "nested": "[" * 100_000,
        "an escape sequence": '{"reason": "\\u001b[31mred"}',
    }
    for command in ("fit", "transition", "lasting", "forgetting"):
        for name, content in contents.items():
            change = put("runs/a/error.json", content)
            argv = (command, "runs")
            yield _case("error.json", f"{command}: {name}", argv, "", change, says="runs")


def _tokens() -> Iterator[Case]:
    for name, change in damaged_files(TABLE):
        yield _transition(TOKENS, name, change, says="tokens.parquet", always=True)
    for name, new in TABLES.items():
        yield _transition(TOKENS, name, _table(new))
    for column in COLUMNS:
        yield _transition(TOKENS, f"no {column}", _table(partial(_without, column)))
        for kind, wrong in WRONG_COLUMNS.items():
            new = partial(_with_column, column, wrong)
            yield _transition(TOKENS, f"{column} of {kind}", _table(new))


COLUMNS = ("step", "sample", "position", "token_id", "p", "nll", "correct", "margin")
WRONG_COLUMNS: dict[str, Callable[[Any], Any]] = {
    "words": lambda values: "x",
    "lists": lambda values: [[value] for value in values],
    "nulls": lambda values: None,
}


def _without(column: str, table: Any) -> Any:
    return table.drop(columns=column)


def _with_column(column: str, wrong: Callable[[Any], Any], table: Any) -> Any:
    return table.assign(**{column: wrong(table[column])})


TABLES: dict[str, Callable[[Any], Any]] = {
    "no rows": lambda table: table.iloc[:0],
    "one row": lambda table: table.iloc[:1],
    "a row less": lambda table: table.iloc[:-1],
    "shuffled": lambda table: table.sample(frac=1, random_state=0),
    "p of NaN": lambda table: table.assign(p=float("nan")),
    "p of 5": lambda table: table.assign(p=5.0),
    "p below 0": lambda table: table.assign(p=-1.0),
    "steps below 0": lambda table: table.assign(step=-table["step"]),
    "never correct": lambda table: table.assign(correct=False, p=0.9),
}


def _table(new: Callable[[Any], Any]) -> Change:
    def change(folder: Path) -> None:
        import pandas as pd

        path = first(folder, TABLE)
        new(pd.read_parquet(path)).to_parquet(path, index=False)

    return change


def _configs() -> Iterator[Case]:
    pattern = "runs/*/config.yaml"
    for name, change in damaged_files(pattern):
        # Without its last letter a file of YAML may still be one.
        is_whole = name == "a byte short"
        yield _lasting(CONFIG, name, change, "config.yaml", always=not is_whole)

    for key in ("~", "5", "true", "2020-01-01", "[a]", "''", "1.5", "nested: {x"):
        for group in ("adapter", "data", "train"):
            change = rewrite(pattern, partial(_with_key, group, key))
            yield _lasting(CONFIG, f"{group} with a key {key}", change, "config.yaml")

    texts = {
        "a call": "rank: !!python/object/apply:os.system ['touch CODE_WAS_RUN']\n",
        "a date that is none": "rank: 2020-13-45\n",
        "an alias of itself": "rank: &a [*a]\n",
        "a tagged integer of letters": "rank: !!int abc\n",
    }
    for name, text in texts.items():
        change = rewrite(pattern, lambda _, text=text: text.encode())
        yield _lasting(CONFIG, name, change, "config.yaml")

    for keys, values in SETTINGS.items():
        for value in values:
            change = _setting(tuple(keys.split(".")), value)
            yield _lasting(CONFIG, f"{keys} {value!r:.30}", change)


def _with_key(group: str, key: str, old: bytes) -> bytes:
    return old.replace(f"{group}:\n".encode(), f"{group}:\n  ? {key}\n  : 1\n".encode())


def _setting(keys: tuple[str, ...], value: Any) -> Change:
    import yaml

    def new(old: bytes) -> bytes:
        tree = yaml.safe_load(old)
        inner = tree
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return yaml.safe_dump(tree).encode()

    return rewrite("runs/*/config.yaml", new)


def _environments() -> Iterator[Case]:
    pattern = "runs/*/env.json"
    for name, change in damaged_files(pattern):
        yield _lasting(ENVIRONMENT, name, change, "env.json")
        if name not in PLAIN_BYTES:
            yield _again(ENVIRONMENT, name, change)
    for field in ("tokens", "base_weights"):
        for name, change in damaged_field(pattern, field):
            yield _lasting(ENVIRONMENT, name, change)


def _adapters() -> Iterator[Case]:
    for name, change in damaged_files(f"{ADAPTERS}/adapter_model.safetensors"):
        yield _lasting(ADAPTER, f"weights {name}", change)
    for name, weight in {
        "no numbers": float("nan"),
        "infinite": float("inf"),
        "huge": 3e38,
    }.items():
        change = rewrite(f"{ADAPTERS}/adapter_model.safetensors", partial(_all_weights, weight))
        yield _lasting(ADAPTER, f"weights that are {name}", change, "adapter.*no numbers")
        yield _measure(f"weights that are {name}", change, codes=(2,))
    yield _lasting(ADAPTER, "no folder", remove(ADAPTERS), "adapter")

    config = f"{ADAPTERS}/adapter_config.json"
    for name, change in damaged_files(config):
        yield _measure(f"config {name}", change, codes=(1, 2))
    for field in ("r", "lora_alpha", "target_modules", "base_model_name_or_path", "peft_type"):
        for name, change in damaged_field(config, field):
            yield _measure(name, change, codes=(0, 1, 2))


def _all_weights(weight: float, content: bytes) -> bytes:
    """An adapter's file with one number for every weight."""
    import numpy as np
    from safetensors.numpy import load, save

    return save({name: np.full_like(tensor, weight) for name, tensor in load(content).items()})


def _measure(
    name: str,
    change: Change,
    codes: tuple[int, ...],
) -> Case:
    """`pml measure` of a damaged adapter, which lies beside the runs."""
    return _case(
        ADAPTER,
        f"measure: {name}",
        ("measure", "adapter", "/etc/hostname", "--no-harm"),
        "swept",
        both(change, _moved_adapter),
        codes=codes,
        says="adapter",
    )


def _moved_adapter(folder: Path) -> None:
    first(folder, ADAPTERS).rename(folder / "adapter")


def _measured() -> Iterator[Case]:
    pattern = "runs/**/lasting.json"
    for name, change in damaged_files(pattern):
        yield _measured_again(name, change)
    for keys in MEASURED_FIELDS:
        for name, change in damaged_field(pattern, *keys):
            yield _measured_again(name, change)
    for field in CONDITION_FIELDS:
        for name in ("a word", "a list", "400 digits"):
            keys = ("runs", 0, "conditions", "trained", field)
            yield _measured_again(
                f"{field} {name}", edit(pattern, partial(_set, keys, VALUES[name]))
            )
    for name in ("a word", "null", "a list"):
        change = edit(pattern, lambda tree, name=name: _set_conditions(tree, VALUES[name]))
        yield _measured_again(f"numbers of a condition {name}", change)


def _measured_again(name: str, change: Change) -> Case:
    return _case(MEASURED, name, LASTING, "measured", change, codes=(0, 2))


MEASURED_FIELDS: tuple[tuple[str | int, ...], ...] = (
    ("format",),
    ("runs",),
    ("runs", 0),
    ("runs", 0, "id"),
    ("runs", 0, "key"),
    ("runs", 0, "conditions"),
    ("runs", 0, "conditions", "merged"),
    ("runs", 0, "damage"),
    ("runs", 0, "damage", "random"),
    ("runs", 0, "rank"),
)


# Numbers of a condition that tables, figures and comparisons read.
CONDITION_FIELDS = (
    *("token_accuracy", "exact_match", "final_loss", "share_above_threshold", "log10_p"),
    *("lost", "lost_above", "won", "kept_whole", "first_failure", "least_margin"),
    *("least_right_margin", "shift_rms", "fall_worst", "violations", "edit_distance"),
    *("free_exact_match", "prefix_share", "recall_from_8", "recall_from_32", "extractable_50"),
    *("compression_ratio", "log10_p_07", "t50", "recall_after_wrong", "accuracy_after_wrong"),
)


def _set(keys: tuple[str | int, ...], value: Any, tree: Any) -> None:
    set_field(tree, keys, value)


def _set_conditions(tree: Any, value: Any) -> None:
    for condition in tree["runs"][0]["conditions"].values():
        for name in condition:
            condition[name] = value


def _lasting(
    door: str,
    name: str,
    change: Change,
    says: str = "runs/",
    *,
    always: bool = True,
) -> Case:
    """`pml lasting`, which may leave out the run and says so."""
    return _case(
        door,
        f"lasting: {name}",
        LASTING,
        "swept",
        change,
        codes=(0, 2),
        says=says,
        always=always,
    )


def _case(
    door: str,
    name: str,
    argv: tuple[str, ...],
    base: str,
    change: Change,
    *,
    codes: tuple[int, ...] = (2,),
    says: str = "runs",
    always: bool = False,
) -> Case:
    writes = argv[0] in ("sweep", "lasting", "probe")
    return Case(
        door=door,
        name=name,
        argv=argv,
        base=base,
        change=change,
        codes=codes,
        says=says,
        always=always,
        writes=writes,
    )
