"""Settings written as YAML: a run's config.yaml, and what `--print-config` shows."""

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
    if isinstance(asked, ReportSettings):
        return _commented(asked)

    heading = ""
    if asked.swept:
        heading = f"# the first of {len(asked.runs)} cells; swept: {', '.join(asked.swept)}\n"
    first = vars(asked.runs[0])
    root = RootSettings(**first, out=str(asked.out), launch=asked.launch)
    return heading + _commented(root)


def _commented(settings: Settings, indent: str = "") -> str:
    """Settings as YAML, each with its help as a comment."""
    entries: list[str] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Settings):
            nested = _commented(value, f"{indent}  ")
            entries.append(f"{indent}{field.name}:\n{nested}")
            continue

        declared = declaration_of(type(settings), field.name)
        if declared is not None:
            value = declared.as_typed(value)
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
