"""One declaration a setting: type, default, help, unit and allowed values on the dataclass field.

Help texts, shell completion, checks and `--print-config` read these fields; nothing about a setting
is written twice. Light to import (neither hydra nor omegaconf): completion pays at every keystroke.

    @dataclass(kw_only=True)
    class Train(Settings):
        lr: float = setting(1e-2, help="peak learning rate", above=0, finite=True)
        schedule: str = setting("linear", help="decay of the rate", choices=("linear", "constant"))
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pml_cli.errors import printable, shortened
from pml_cli.io import file_fault

T = TypeVar("T")

# A zero byte ends a text for the system; unpaired surrogates (of a cut emoji) cannot be written.
UNUSABLE = re.compile("[\0\ud800-\udfff]")
# In a path also what moves the cursor, or begins a line of a job's script.
UNUSABLE_IN_PATH = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# Letters of a value in the line of its fault: a sweep file may hold a page of them.
MAX_QUOTED = 300

# They name the dataclass of a group's option: chosen with group=option, never set by themselves.
DISCRIMINATORS = ("source", "kind")

# What a value of a type looks like on the command line.
TYPE_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list: [a,b]",
    dict: "a mapping: {a:b}",
}

# `any`: a file, a folder, or a name of the Hugging Face hub.
PathKind = Literal["", "any", "existing file"]


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What is declared of a setting beside its type and default: the arguments of `setting`."""

    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    finite: bool = False
    required: bool = False
    pattern: str = ""
    allowed: str = ""
    special: Mapping[Any, str] = field(default_factory=dict)
    path: PathKind = ""
    one_line: bool = False
    suggestions: tuple[str, ...] = ()
    words: Mapping[str, Any] = field(default_factory=dict)
    absent: Any = dataclasses.MISSING

    def accepts(self, value: Any) -> bool:
        """Whether a value other than null is allowed; a list's elements are given one by one."""
        if value in self.words.values():
            return True
        if self.choices and value not in self.choices:
            return False
        if self.pattern and not re.fullmatch(self.pattern, value):
            return False
        if self.required and not value:
            return False
        return self._in_bounds(value)

    def _in_bounds(self, value: Any) -> bool:
        # Written so that NaN, which compares false with everything, is refused by any bound.
        if self.minimum is not None and not value >= self.minimum:
            return False
        if self.maximum is not None and not value <= self.maximum:
            return False
        if self.above is not None and not value > self.above:
            return False
        if self.below is not None and not value < self.below:
            return False
        return not self.finite or _is_finite(value)

    def allowed_text(self, *, optional: bool = False) -> str:
        """What is allowed, to follow "must be": `null or at least 1 (steps)`."""
        text = self.range_text()
        if optional:
            text = f"null or {text}"
        text = " or ".join([text, *self.words])
        # Null is named above. Where a number is wrong, only special values that are numbers help.
        numbers = [value for value in self.special if isinstance(value, int)]
        special = {value: self.special[value] for value in numbers}
        return _with_notes(text, [self.unit, _special_text(special)])

    def range_text(self) -> str:
        """The values allowed, by choices or bounds: `from 0 to 1`; empty: all of the type."""
        return self.allowed or self._choices_text() or self._bounds_text()

    def _choices_text(self) -> str:
        if len(self.choices) <= 2:
            return " or ".join(self.choices)
        return f"one of {', '.join(self.choices)}"

    def _bounds_text(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f"from {self.minimum:g} to {self.maximum:g}"
        bounds = []
        if self.minimum is not None:
            bounds.append(f"at least {self.minimum:g}")
        if self.above is not None:
            bounds.append(f"above {self.above:g}")

        if self.maximum is not None:
            bounds.append(f"at most {self.maximum:g}")
        if self.below is not None:
            bounds.append(f"below {self.below:g}")
        if self.finite:
            bounds.append("finite")

        return " and ".join(bounds)

    def as_typed(self, value: Any) -> Any:
        """The word that stands for a value, where there is one, else the value."""
        for word, meaning in self.words.items():
            if value == meaning:
                return word
        return value

    def help_text(self) -> str:
        """The help with unit, choices and special values: `samples per step (0: all of them)`."""
        return _with_notes(
            self.help, [self.unit, self._choices_text(), _special_text(self.special)]
        )


def _is_finite(value: Any) -> bool:
    """Whether a number is finite; an integer that no float holds is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _special_text(special: Mapping[Any, str]) -> str:
    return "; ".join(f"{value_text(value)}: {meaning}" for value, meaning in special.items())


def _with_notes(text: str, notes: list[str]) -> str:
    note = "; ".join(filter(None, notes))
    return f"{text} ({note})" if note else text


def setting(
    default: T,
    *,
    help: str,
    unit: str = "",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    finite: bool = False,
    required: bool = False,
    pattern: str = "",
    allowed: str = "",
    special: Mapping[Any, str] | None = None,
    path: PathKind = "",
    one_line: bool = False,
    suggestions: tuple[str, ...] = (),
    words: Mapping[str, Any] | None = None,
    absent: Any = dataclasses.MISSING,
) -> T:
    """A dataclass field that declares a setting: `dataclasses.field` with metadata.

    Where the setting is a list, bounds, choices and pattern hold for each element. Null is always
    allowed where the type allows it. Checks across several settings belong into
    `Settings.validate`.

    Args:
        default: the default; a list or mapping is copied for every instance.
        help: what the setting is, a phrase without a full stop.
        unit: unit of the value, such as `nats`.
        choices: the values allowed.
        minimum, maximum: inclusive bounds.
        above, below: exclusive bounds.
        finite: whether infinity is refused.
        required: whether an empty text or list is refused.
        pattern: regular expression that the whole value matches.
        allowed: what is allowed, in words, to follow "must be"; choices and bounds say it by
            themselves.
        special: values with a meaning of their own, `{0: "all samples"}`.
        path: whether the value is a path, which the shell completes, and whether it must be an
            existing file.
        one_line: whether line breaks and other control characters are refused.
        suggestions: values that shell completion offers beside the choices.
        words: words for values that a user cannot know, `{"all": ALL}`; allowed whatever the
            bounds.
        absent: what the config.yaml of a run means that was written before this setting existed,
            and the value that run ids leave out; without it, the default.
    """
    declaration = Declaration(
        help=help,
        unit=unit,
        choices=choices,
        minimum=minimum,
        maximum=maximum,
        above=above,
        below=below,
        finite=finite,
        required=required,
        pattern=pattern,
        allowed=allowed,
        special=special or {},
        path=path,
        one_line=one_line,
        suggestions=suggestions,
        words=words or {},
        absent=absent,
    )
    # Under one key, so that `dataclasses.fields` finds all of it.
    metadata = {"declaration": declaration}
    declared: Any
    # Dataclasses refuse a mutable default, which all instances would share.
    if isinstance(default, list | dict):
        declared = field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    else:
        declared = field(default=default, metadata=metadata)
    # What a type checker is to see is the field's value, as with dataclasses.field.
    return typing.cast("T", declared)


@dataclass(kw_only=True)
class Settings:
    """Base of the dataclasses of settings; a path that begins with `~` is expanded."""

    def __post_init__(self) -> None:
        owner: Any = type(self)
        for name in path_names(owner):
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith("~"):
                # Not Path.expanduser, which raises an error for an unknown user.
                setattr(self, name, os.path.expanduser(value))  # noqa: PTH111

    def validate(self) -> Iterator[str]:
        """Lines about faults that no single field shows, each `setting=value: must be ...`.

        The name is the field's own; the caller puts the group before it.
        """
        yield from ()

    def unread(self) -> dict[str, str]:
        """Settings that nothing reads beside the values of the others, each with the reason.

        The name is the field's own; the reason says which settings decide it. One value of them is
        allowed, as it changes nothing; cells that differ in nothing else are refused
        (`config/unread.py`).
        """
        return {}


@lru_cache(maxsize=64)
def path_names(owner: type[Any]) -> list[str]:
    """The settings of a dataclass that are paths."""
    return [
        declared.name
        for declared in dataclasses.fields(owner)
        if "declaration" in declared.metadata and declared.metadata["declaration"].path
    ]


def declaration_of(owner: type[Any], name: str) -> Declaration | None:
    """What a dataclass declares of one of its fields; None for a field that is no `setting`."""
    for declared in dataclasses.fields(owner):
        if declared.name == name:
            return declared.metadata.get("declaration")
    return None


def absent_values(owner: type[Any]) -> dict[str, Any]:
    """What old config.yaml files mean that do not name a setting, where that is not its default."""
    values = {}
    for declared in dataclasses.fields(owner):
        declaration = declared.metadata.get("declaration")
        if declaration is not None and declaration.absent is not dataclasses.MISSING:
            values[declared.name] = declaration.absent
    return values


def faults(settings: Settings, prefix: str = "") -> list[str]:
    """What is wrong with the values of settings, and with the settings that they hold.

    Args:
        settings: an instance.
        prefix: put before every name: `train.`.

    Returns:
        A line for each fault: option, value, what is allowed.
    """
    lines = own_faults(settings, prefix)

    for declared in dataclasses.fields(settings):
        value = getattr(settings, declared.name)
        if isinstance(value, Settings):
            lines += faults(value, f"{prefix}{declared.name}.")
    return lines


def own_faults(settings: Settings, prefix: str = "") -> list[str]:
    """Faults of the object itself, without those of the settings that it contains."""
    lines: list[str] = []
    for declared in dataclasses.fields(settings):
        if "declaration" in declared.metadata:
            value = getattr(settings, declared.name)
            declaration = declared.metadata["declaration"]
            lines += _field_faults(type(settings), declared.name, declaration, value)
    lines += settings.validate()
    return [f"{prefix}{line}" for line in lines]


def _field_faults(
    owner: type[Any], name: str, declaration: Declaration, value: Any
) -> Iterator[str]:
    # Whether null is allowed, the type says.
    if value is None:
        return

    values = value if isinstance(value, list) and not declaration.required else [value]
    for element in values:
        unusable = UNUSABLE_IN_PATH if declaration.path or declaration.one_line else UNUSABLE
        if isinstance(element, str) and unusable.search(element):
            text = printable(quoted(element))
            yield f"{name}={text}: must not contain control characters or unpaired surrogates"
        elif not declaration.accepts(element):
            allowed = declaration.allowed_text(optional=annotation(owner, name)[1])
            yield f"{name}={quoted(element)}: must be {allowed}"

    if declaration.path and isinstance(value, str):
        reason = _path_fault(value, declaration.path)
        if reason:
            yield f"{name}={shortened(value)}: {reason}"


def _path_fault(text: str, kind: PathKind) -> str:
    """Why a text cannot be the path that is asked for; empty where it can."""
    if not text:
        return ""
    if kind != "existing file":
        return _name_fault(text)
    return file_fault(Path(text))


def _name_fault(text: str) -> str:
    """Why no file could have this name; empty where one could."""
    try:
        os.lstat(text)
    except OSError as error:
        # A text in place of its path. What else is wrong shows where the path is used.
        return str(error.strerror) if error.errno == errno.ENAMETOOLONG else ""
    except ValueError:
        return "no name of a file"
    return ""


def keys(owner: type[Any]) -> list[str]:
    """The settings of a dataclass that a user may override."""
    names = [declared.name for declared in dataclasses.fields(owner)]
    return [name for name in names if name not in DISCRIMINATORS]


def dotted_keys(owner: type[Any]) -> dict[str, type[Any]]:
    """The keys that a user may override, `model.path` of settings inside of settings.

    Returns:
        Of each key the dataclass that declares it; its field is what follows the last point.
    """
    owners: dict[str, type[Any]] = {}
    for declared in dataclasses.fields(owner):
        inner = declared.default_factory
        if isinstance(inner, type) and issubclass(inner, Settings):
            owners |= {f"{declared.name}.{key}": cls for key, cls in dotted_keys(inner).items()}
        elif declared.name not in DISCRIMINATORS:
            owners[declared.name] = owner
    return owners


def annotation(owner: type[Any], name: str) -> tuple[type[Any], bool]:
    """The type of a setting (`list` for `list[int]`), and whether it takes null."""
    # Annotations are texts, as in every module here.
    hint = typing.get_type_hints(owner)[name]
    if not isinstance(hint, types.UnionType):
        return typing.get_origin(hint) or hint, False
    # The other member of the union is None.
    (kind,) = set(typing.get_args(hint)) - {type(None)}
    return typing.get_origin(kind) or kind, True


@lru_cache
def _type_hints(owner: Any) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def has_type(owner: type[Any], name: str, value: Any) -> bool:
    """Whether a value is of the type that a setting declares; an integer is a float as well."""
    hints = _type_hints(owner)  # type: ignore[arg-type]
    return _is_instance(value, hints[name])


def _is_instance(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType):
        return any(_is_instance(value, member) for member in typing.get_args(hint))

    origin = typing.get_origin(hint)
    if origin is list:
        (element_hint,) = typing.get_args(hint)
        return isinstance(value, list) and all(_is_instance(v, element_hint) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float and isinstance(value, int):
        # One that no float holds is none.
        return _is_finite(value)
    return isinstance(value, hint)


def type_text(owner: type[Any], name: str) -> str:
    """What type a setting takes, in words: `null or an integer`."""
    kind, optional = annotation(owner, name)
    text = TYPE_NAMES.get(kind, kind.__name__)
    declared = declaration_of(owner, name)
    if declared is not None:
        text = " or ".join([text, *declared.words])
    return f"null or {text}" if optional else text


def type_fault(owner: type[Any], name: str, value: Any, key: str) -> str:
    """The line about a value of another type: `rank=1.0: must be an integer`."""
    # A float keeps its point: it is what is wrong with it.
    text = str(value) if isinstance(value, float) else quoted(value)
    return f"{key}={text}: must be {type_text(owner, name)}"


def value_text(value: Any) -> str:
    """A value as one writes it on the command line, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    # A user who gave 4 to a float reads 4 and not 4.0.
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return " ".join(str(value).split())


def quoted(value: Any) -> str:
    """`value_text`, cut off where it is too long for an error line."""
    text = value_text(value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."
