"""What hypothesis draws: settings as they are declared, runs, plain values."""

import dataclasses
import typing

from hypothesis import strategies as st

from pml_cli.config.registry import declared
from pml_cli.config.schema import Model, Run, Train
from pml_cli.config.setting import (
    DISCRIMINATORS,
    UNUSABLE,
    UNUSABLE_IN_PATH,
    annotation,
    declaration_of,
    faults,
)

# Line ends of every kind, and what spreadsheets, YAML and Hydra take for more than a letter.
SPECIAL = "\n\r\t\x85\u2028\"',;=-${}[]"
WORDS = st.text(st.sampled_from(SPECIAL) | st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.none() | st.booleans() | st.integers() | NUMBERS | WORDS

# JSON of any shape, small.
JSON = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


def field_values(owner, name):
    """Values of the type that a setting declares, within its bounds."""
    kind, optional = annotation(owner, name)
    declaration = declaration_of(owner, name)
    if kind is list:
        element = typing.get_args(_hint(owner, name))[0]
        least = 1 if declaration.required else 0
        values = st.lists(_of_type(element, declaration), min_size=least, max_size=3)
    elif kind is dict:
        values = st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), max_size=3)
    else:
        values = _of_type(kind, declaration)
    values = values.filter(lambda value: _accepted(declaration, value))
    return st.none() | values if optional else values


def _hint(owner, name):
    """`list[int]` of an annotation `list[int] | None`."""
    hint = typing.get_type_hints(owner)[name]
    members = [member for member in typing.get_args(hint) if typing.get_origin(member) is list]
    return members[0] if members else hint


def _of_type(kind, declaration):
    if declaration.choices:
        return st.sampled_from(declaration.choices)
    if kind is bool:
        return st.booleans()
    if kind is str:
        return _texts(declaration)
    if kind is int:
        return st.integers(*_ends(declaration, 10**6))
    least, most = _ends(declaration, 1e6)
    return st.floats(least, most, exclude_min=declaration.above is not None, width=32)


def _texts(declaration):
    if declaration.pattern:
        return st.from_regex(declaration.pattern, fullmatch=True)
    unusable = UNUSABLE_IN_PATH if declaration.path or declaration.one_line else UNUSABLE
    words = WORDS.filter(lambda text: not unusable.search(text))
    # What begins with ~ is the folder of a user, and a file must exist.
    return st.just("") if declaration.path == "existing file" else words.filter(_is_plain)


def _is_plain(text):
    return not text.startswith("~") and "${" not in text and text != "???" and "\\n" not in text


def _ends(declaration, far):
    least = declaration.minimum if declaration.minimum is not None else declaration.above
    most = declaration.maximum if declaration.maximum is not None else declaration.below
    least = -far if least is None else least
    most = far if most is None else most
    return type(far)(least), type(far)(min(most, max(far, least + 1)))


def _accepted(declaration, value):
    values = value if isinstance(value, list) else [value]
    return all(declaration.accepts(element) for element in values)


def settings_of(owner):
    """A dataclass of settings with a few of them off their defaults."""
    names = [field.name for field in dataclasses.fields(owner) if field.name not in DISCRIMINATORS]
    names = [name for name in names if declaration_of(owner, name) is not None]
    drawn = {name: field_values(owner, name) for name in names}
    return st.fixed_dictionaries({}, optional=drawn).map(lambda values: owner(**values))


def options_of(group):
    """The settings of any option of a group."""
    return st.one_of(*(settings_of(owner) for owner in declared(group).values()))


def runs():
    """A run with any settings of the declared types, which need not go together."""
    return st.builds(
        Run,
        rank=st.integers(1, 4096),
        seqlen=st.integers(1, 10**6),
        seed=st.integers(0, 10**6),
        model=settings_of(Model).map(_embedded),
        data=options_of("data"),
        adapter=options_of("adapter"),
        loss=options_of("loss"),
        train=settings_of(Train),
    )


def mended(run):
    """The same with the defaults of the groups whose settings do not go together."""
    fields = {}
    for name in ("model", "data", "adapter", "loss", "train"):
        settings = getattr(run, name)
        fields[name] = type(settings)() if faults(settings) else settings
    return dataclasses.replace(run, **fields)


def _embedded(model):
    """The same with a model that this machine has."""
    return dataclasses.replace(model, path="tiny")
