"""The command line of `pml memorize`: files, settings and limits, to a typed request."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pml_cli.config.override_text import override_of
from pml_cli.config.schema import Request, Run
from pml_cli.errors import UserError
from pml_cli.io import expand_home, file_fault
from pml_cli.validation import plain_number

# Seeds of a search where none are given.
SEEDS = [0, 1]

# Endings of files that are tables of facts, whatever is in them; a .gz behind them does not count.
TABLE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

# Bytes by which a file of another ending is told to be JSON lines.
HEAD_BYTES = 1 << 16

# What switches a limit off.
NO_LIMIT = ("none", "null", "off")

# A hundred years: a longer wait is more than the system can count.
MOST_SECONDS = 36500 * 86400

SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(min|s|m|h|d)\s*", re.ASCII)

# The keys of conf/memorize.yaml that are no settings of a run: what facts and texts differ in.
FACTS = "facts"
MANY_FACTS = "many_facts"
TEXTS = "texts"

# Where one of these is given, the search adds no limit of harm to the loss.
KEPT_BY_USER = frozenset({"loss.keep", "loss.keep_harm"})

# Settings of the chat template: where one is given, prompts go through it.
CHAT_SETTINGS = frozenset({"data.system", "data.thinking", "data.date"})

# Settings of conf/memorize.yaml that are left out where one of these keys is given: they say how
# long the training is, or at what rate, too. Epochs of another length still go through minibatches.
REPLACED_BY = {
    "train.steps": {"train.epochs", "train.batch", "train.curriculum"},
    "train.epochs": {"train.steps", "train.batch", "train.curriculum"},
    "train.batch": {"train.steps", "train.curriculum"},
    "train.curriculum": {"train.steps", "train.epochs", "train.batch"},
    # Another optimiser has another rate.
    "train.lr": {"train.optimizer"},
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the user asks for beside the settings of the runs."""

    exact: float = 1.0
    """Least share of the facts that are known whole."""

    max_forgetting: float | None = 0.1
    """Largest allowed rise of the loss on other text, nats per token; None: no limit."""

    budget: float | None = None
    """Seconds; None: any."""


@dataclass(frozen=True, kw_only=True)
class MemorizeRequest:
    """What `pml memorize` asks for."""

    command: str
    """The command line as typed."""

    request: Request
    """One run, of whatever rank and seed, with its results folder and launch."""

    files: list[Path]
    """Files given, of facts or of text; empty: the data is a setting."""

    ranks: list[int]
    """Ascending; none: the search decides."""

    seeds: list[int]
    limits: Limits

    given: frozenset[str]
    """Keys of the command line, and those that are set by the kind of the data."""

    many_facts: Run | None = None
    """`run` as it is trained where there are many facts; None: they are texts."""

    @property
    def run(self) -> Run:
        """The run that differs from those of the search in rank and seed."""
        return self.request.runs[0]


def split_files(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files among the arguments, and the settings.

    Raises:
        UserError: no such file; a line for each.
    """
    overrides: list[str] = []
    files: list[Path] = []
    faults = []
    for argument in arguments:
        file = expand_home(argument)
        # The name of a file may have one, too.
        if "=" in argument and not file.is_file():
            overrides.append(argument)
            continue
        reason = text_fault(file)
        if not reason and any(file.samefile(other) for other in files):
            reason = "given twice"
        if reason:
            faults.append(f"{file}: {reason}")
            continue
        files.append(file)
    if faults:
        raise UserError(*faults)
    return files, overrides


def text_fault(file: Path) -> str:
    """Why this is no file of facts or of text; empty where it can be one."""
    if file.is_dir():
        return "a folder; give a file of facts or a text"
    return file_fault(file)


def is_table(file: Path) -> bool:
    """Whether a file holds facts, by its ending, else by its first line; if not it is a text."""
    endings = [ending.lower() for ending in file.suffixes]
    if any(ending in endings[-2:] for ending in TABLE_ENDINGS):
        return True

    try:
        with file.open("rb") as content:
            head = content.read(HEAD_BYTES).lstrip()
        # An array of objects, over any number of lines.
        if head.startswith(b"[") and head[1:].lstrip().startswith(b"{"):
            return True
        first_line = head.partition(b"\n")[0]
        return isinstance(json.loads(first_line), dict)
    # A line that is cut off, or nested without end, is no short fact either.
    except (OSError, ValueError, RecursionError):
        return False


def data_of_files(files: Sequence[Path], given: Collection[str]) -> list[str]:
    """The settings that stand for files of facts or of text.

    Raises:
        UserError: names what cannot stand beside them.
    """
    beside = sorted(set(given) & {"data", "data.path"})
    if beside:
        raise UserError(f"{files[0]}: cannot be combined with {beside[0]}=; leave one of them out")

    tables = [file for file in files if is_table(file)]
    if tables and len(files) > 1:
        raise UserError(f"{tables[0]}: one file of facts, or several texts, but not both")
    # Several texts become a file of question and long text.
    source = "jsonl" if tables or len(files) > 1 else "text"
    return [f"data={source}", override_of("data.path", files[0])]


def parsed_limits(exact: str, max_forgetting: str, budget: str) -> Limits:
    """The limits as they are written on the command line.

    Args:
        exact: per cent: 99%.
        max_forgetting: nats per token, or none.
        budget: a duration: 30min; empty: none.

    Raises:
        UserError: all faults at once, one line each.
    """
    parsers = (("exact", _share, exact), ("max-forgetting", _nats, max_forgetting))
    faults: list[str] = []
    values: list[Any] = []
    for name, parse, text in (*parsers, ("budget", _seconds, budget)):
        try:
            values.append(parse(text))
        except ValueError as error:
            faults.append(f"--{name} {text}: must be {error}")
    if faults:
        raise UserError(*faults)
    return Limits(exact=values[0], max_forgetting=values[1], budget=values[2])


def command_line(arguments: Sequence[str], **options: str) -> str:
    """The command as a user types it.

    Args:
        arguments: files and settings.
        options: values by name, empty where they have their defaults.
    """
    words = ["pml", "memorize", *arguments]
    for name, value in options.items():
        if value:
            words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)


def _share(text: str) -> float:
    allowed = "per cent above 0 and at most 100, such as 99%"
    try:
        value = plain_number(text.strip().removesuffix("%"))
    except ValueError as error:
        raise ValueError(allowed) from error
    # 0.99 is more likely meant as a share than as less than one per cent.
    is_share = 0 < value <= 1 and not text.strip().endswith("%")
    if is_share:
        per_cent = f"{100 * value:.10g}%"
        raise ValueError(f"{allowed}; did you mean {per_cent}?")
    if not 0 < value <= 100:
        raise ValueError(allowed)
    return value / 100


def _nats(text: str) -> float | None:
    allowed = "nats per token, above 0: 0.1; or none"
    if text.strip().lower() in NO_LIMIT:
        return None
    try:
        value = plain_number(text)
    except ValueError as error:
        raise ValueError(allowed) from error
    # 0 would be read as no forgetting at all by the one, as no limit by the other.
    if not 0 < value < float("inf"):
        raise ValueError(allowed)
    return value


def _seconds(text: str) -> float | None:
    if not text:
        return None
    parts = DURATION.findall(text)
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if DURATION.sub("", text).strip() or not 0 < seconds <= MOST_SECONDS:
        raise ValueError("a duration of at most 36500d: 90s, 30min, 2h, 1h30min")
    return seconds
