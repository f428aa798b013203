"""Settings written out: a run's config.yaml, and what `--print-config` and reports show of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf

from pml_cli.config.cache_key import CacheKey
from pml_cli.config.option_set import RootSettings
from pml_cli.config.reports import ReportSettings
from pml_cli.config.schema import Request, Run
from pml_cli.config.setting import DISCRIMINATORS, Settings, declaration_of

# A comment stands in this column at most; a longer line pushes it to the right.
COMMENT_COLUMN = 34


def to_yaml(run: Run) -> str:
    """A run as YAML, every setting resolved."""
    texts = []
    for field in dataclasses.fields(Run):
        value = CacheKey(getattr(run, field.name))
        texts.append(_field_yaml(field.name, value))
    return "".join(texts)


# The cells of a sweep share most of their groups, and YAML is slow.
@lru_cache(maxsize=1024)
def _field_yaml(name: str, field: CacheKey) -> str:
    return _yaml({name: _plain(field.value)})


def describe(asked: Request | ReportSettings) -> str:
    """What `--print-config` shows: every setting, with its help as a comment.

    Of many runs the first.
    """
    note = swept_note(asked)
    heading = f"# {note}\n" if note else ""
    return heading + _commented(_all_settings(asked))


def values_by_key(asked: Request | ReportSettings) -> dict[str, Any]:
    """What `--print-config --json` shows: the value of every setting by its key, as both are typed.

    Of many runs the first.
    """
    return _flat(_all_settings(asked))


def swept_note(asked: Request | ReportSettings) -> str:
    """Which of many runs is shown, and what they differ in; empty: there is one."""
    if isinstance(asked, ReportSettings) or not asked.swept:
        return ""
    return f"the first of {len(asked.runs)} cells; swept: {', '.join(asked.swept)}"


def _all_settings(asked: Request | ReportSettings) -> Settings:
    """The settings of a command; of many runs the first, with what surrounds it."""
    if isinstance(asked, ReportSettings):
        return asked
    return RootSettings(**vars(asked.runs[0]), out=str(asked.out), launch=asked.launch)


def _flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; what names the class of a group is the option, `data=text`."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Settings):
            values |= _flat(value, f"{prefix}{field.name}.")
        elif field.name in DISCRIMINATORS:
            values[prefix.removesuffix(".")] = value
        else:
            values[f"{prefix}{field.name}"] = _as_typed(settings, field.name)
    return values


def nested_values(settings: Settings) -> dict[str, Any]:
    """Settings as a nested mapping, each value as it is typed: what files of reports hold."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Settings):
            values[field.name] = nested_values(value)
        else:
            values[field.name] = _as_typed(settings, field.name)
    return values


def _as_typed(settings: Settings, name: str) -> Any:
    """The value of a setting, as the word that stands for it where there is one."""
    value = getattr(settings, name)
    declared = declaration_of(type(settings), name)
    return value if declared is None else declared.as_typed(value)


def _commented(settings: Settings, indent: str = "") -> str:
    """Settings as YAML, each with its help as a comment."""
    entries: list[str] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Settings):
            nested = _commented(value, f"{indent}  ")
            entries.append(f"{indent}{field.name}:\n{nested}")
            continue

        value = _as_typed(settings, field.name)
        # OmegaConf writes texts that need quotes, lists and mappings.
        entry = _indented(_yaml({field.name: _plain(value)}), indent)
        comment = _comment(type(settings), field.name)
        entries.append(_with_comment(entry, comment, indent))
    return "".join(entries)


def _comment(owner: type[Any], name: str) -> str:
    """The help of a setting; for the key that names a class, the summary of the class."""
    if name in DISCRIMINATORS:
        return summary(owner)
    declared = declaration_of(owner, name)
    return declared.help_text() if declared else ""


def _with_comment(entry: str, comment: str, indent: str) -> str:
    """An entry with a comment behind its first line, where that does not break a text in two."""
    if not comment:
        return entry
    first, newline, below = entry.partition("\n")
    # YAML folds a long text over several lines; a comment would become part of it.
    is_folded_text = bool(below) and not first.endswith(":")
    if is_folded_text:
        return f"{indent}# {comment}\n{entry}"
    return f"{first:<{COMMENT_COLUMN}}  # {comment}{newline}{below}"


def _indented(text: str, indent: str) -> str:
    return "".join(f"{indent}{line}" for line in text.splitlines(keepends=True))


def _yaml(tree: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dict(tree)))


def _plain(value: Any) -> Any:
    """Settings as a mapping; anything else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def summary(owner: type[Any]) -> str:
    """The first line of a class's docstring."""
    docstring = inspect.getdoc(owner) or ""
    return docstring.partition("\n")[0].rstrip(".")
