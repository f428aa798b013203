"""Hydra's part: the grammar of overrides, and YAML files composed to a tree.

The only module that imports hydra (1.3; pinned below 1.4). The grammar is `rank=4,8`, `range(1,9)`,
`choice(a,b)`, `glob(*)` for groups, `group=option`. What Hydra accepts silently and is nearly
always a slip is refused here: a key given twice (bash makes that of rank={4,8}), an interval,
`+key`.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from hydra import version
from hydra.compose import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pml_cli.config.grid import MAX_CELLS, Grid
from pml_cli.config.option_files import options, shipped, split_known
from pml_cli.config.override_text import typed_override
from pml_cli.config.registry import GROUPS
from pml_cli.config.sweep_file import YAMLError, one_line
from pml_cli.errors import UserError
from pml_cli.io import expand_home

# Hydra's parser recurses into every bracket.
MAX_DEPTH = 50

# Letters of an override that a message quotes.
MAX_QUOTED = 300

# What several values, a call, a list, a mapping or an interpolation looks like.
SEVERAL = re.compile(r",|\$\{|^\w+\(.*\)$|^\[.*\]$|^\{.*\}$", re.DOTALL)


# Infinity as one writes it; a number with too many digits is read as it, too.
INFINITY = re.compile("inf", re.IGNORECASE)


class GrammarError(UserError):
    """A text that is not of Hydra's grammar."""


def parse(
    overrides: Iterable[str], config_dir: Path | None = None, groups: tuple[str, ...] = GROUPS
) -> tuple[Grid, list[str]]:
    """Overrides in Hydra's grammar to the values of each key.

    Args:
        overrides: as on the command line.
        config_dir: a user's folder of options.
        groups: the groups that the command has.

    Returns:
        The values, and a line for each override that cannot be read, is given twice or names no
        option. A group keeps the values that are options.
    """
    grid: Grid = {}
    lines: list[str] = []
    for text in overrides:
        try:
            key, values = _parse_override(text, config_dir, groups)
        except UserError as error:
            lines.append(_joined(error) + _remedy(error, text))
            continue

        if key in grid:
            lines.append(f"{key}: given twice (several values: {key}=a,b, without braces)")
        if key in groups:
            values, unknown = split_known(key, values, config_dir)
            lines += unknown
        grid[key] = values
    return grid, lines


def parse_file_texts(
    texts: Mapping[str, str], file: Path, config_dir: Path | None = None
) -> tuple[Grid, list[str]]:
    """The texts of a sweep file to the values of each key.

    A text that is no sweep of values means itself, whatever characters it has: unlike a command
    line, YAML has quotes of its own. In them too, a number, true, false and null are no text.

    Args:
        texts: by key.
        file: the sweep file, for messages.
        config_dir: a user's folder of options.

    Returns:
        The values, and a line for each text that looks like several values and cannot be read.
    """
    grid: Grid = {}
    lines: list[str] = []
    for key, text in texts.items():
        try:
            values = _file_values(key, text, config_dir)
        except GrammarError as error:
            lines.append(f"{file}: {_joined(error)}; {_remedy_in_yaml(text)}")
            continue
        except UserError as error:
            lines.append(f"{file}: {_joined(error)}")
            continue

        if key in GROUPS:
            values, unknown = split_known(key, values, config_dir)
            lines += unknown
        grid[key] = values
    return grid, lines


def _file_values(key: str, text: str, config_dir: Path | None) -> list[Any]:
    """The values of a text in a sweep file.

    Raises:
        GrammarError: it looks like several values and is not of Hydra's grammar.
        UserError: what it says cannot be.
    """
    try:
        name, values = _parse_override(f"{key}={text}", config_dir, GROUPS)
    except GrammarError:
        if SEVERAL.search(text.strip()):
            raise
        return [text]
    # A key that is none, such as `a=b`, is refused by its whole name.
    if name != key:
        return [text]
    # The grammar leaves blanks at the ends out, and every second backslash.
    is_text = len(values) == 1 and isinstance(values[0], str)
    is_plain = not SEVERAL.search(text.strip()) and text.strip()[:1] not in ("'", '"')
    return [text] if is_text and is_plain else values


def _joined(error: UserError) -> str:
    """A message that quotes an override, which may have several lines, on one."""
    return " ".join(str(error).split())


def _parse_override(
    text: str, config_dir: Path | None, groups: tuple[str, ...]
) -> tuple[str, list[Any]]:
    """The key of an override and its values, each once.

    Raises:
        GrammarError: it is not of Hydra's grammar.
        UserError: it cannot be read for another reason.
    """
    quoted = _short(text)
    if text[:1] in ("+", "~"):
        bare = quoted.lstrip("+~") or "KEY"
        written = bare if "=" in bare else f"{bare}=VALUE"
        raise UserError(
            f"{quoted}: {text[0]} is not supported, every setting has a value; write {written}"
        )
    key, equals, value = text.partition("=")
    if _depth(text) > MAX_DEPTH:
        raise UserError(f"{_short(key)}: its value is nested too deep")
    if not equals or not key.strip():
        raise UserError(f"{quoted}: not of the form key=value")

    try:
        override = OverridesParser.create().parse_override(_with_home(key, text))
    except (HydraException, ValueError) as error:
        reason = _short(one_line(error))
        raise GrammarError(f"{quoted}: cannot be parsed by Hydra's grammar ({reason})") from error
    if override.package is not None:
        raise UserError(f"{quoted}: Hydra's @package syntax is not supported")

    key = override.key_or_group
    names = options(key, config_dir) if key in groups else None
    values = _values(override, quoted, names)
    if not values:
        raise UserError(f"{quoted}: no values")
    if any(map(_is_infinite, values)) and not INFINITY.search(value):
        largest = f"{sys.float_info.max:.2g}"
        raise UserError(f"{quoted}: a number that is too large; must be at most {largest}")
    return key, distinct(values)


def _remedy(error: UserError, text: str) -> str:
    """How a shell and Hydra take a value as it is; empty where something else is wrong."""
    if not isinstance(error, GrammarError):
        return ""
    key, _, value = text.partition("=")
    # With a line break in it, it would be no line.
    if len(text) > MAX_QUOTED or not text.isprintable():
        return "; quote special characters: key='value'"
    return f"; quote special characters: {typed_override(key, value)}"


def _remedy_in_yaml(text: str) -> str:
    """How a sweep file takes a text as it is."""
    # With codes for line breaks and the like.
    literal = json.dumps(text.replace("${", r"\${"), ensure_ascii=not text.isprintable())
    if len(text) > MAX_QUOTED:
        literal = '"text"'
    return f"a text that is one value goes into a list: [{literal}]"


def _short(text: str) -> str:
    """An override as it is quoted: a value may be as long as a file."""
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def _depth(text: str) -> int:
    """How deep brackets are nested in an override; closing ones that are missing count."""
    depth = deepest = 0
    for letter in text:
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        deepest = max(deepest, depth)
    return deepest


def _with_home(key: str, text: str) -> str:
    """An override with each `~/` that begins a path expanded: the grammar has no such character."""
    if not key.endswith("path"):
        return text
    # Only where a value begins, and not in quotes.
    return re.sub(r"(?<=[=,\[(])~(?=/)", str(expand_home("~")), text)


def _values(override: Override, text: str, names: list[str] | None) -> list[Any]:
    """The values of an override.

    Args:
        override: as Hydra parsed it.
        text: the override, for messages.
        names: the options of the group; None for a plain key.
    """
    value = override.value()

    if isinstance(value, IntervalSweep):
        raise UserError(
            f"{text}: an interval has no list of values; use range(start,stop,step) or a,b,c"
        )
    if isinstance(value, Glob):
        if names is None:
            raise UserError(f"{text}: glob() is for groups ({', '.join(GROUPS)})")
        return list(value.filter(names))

    if isinstance(value, RangeSweep):
        return _range_values(value, text)
    if isinstance(value, ChoiceSweep):
        return [_unquoted(element) for element in value.list]
    return [value]


def _range_values(sweep: RangeSweep, text: str) -> list[Any]:
    """The numbers of Hydra's range(start,stop,step), without `stop`."""
    ends = (sweep.start, sweep.stop, sweep.step)
    # In decimals, so that range(0.1,0.5,0.1) holds 0.3 and not 0.30000000000000004.
    start, stop, step = (Decimal(str(end)) for end in ends)
    is_finite = all(end.is_finite() for end in (start, stop, step))
    if not is_finite or step == 0:
        raise UserError(f"{text}: a range needs finite ends and a step that is not 0")

    # Rounded up, because `stop` itself is left out.
    steps = (stop - start) / step
    count = max(0, int(steps.to_integral_value(ROUND_CEILING)))
    if count > MAX_CELLS:
        raise UserError(f"{text}: {count} values; at most {MAX_CELLS} cells in one sweep")
    numbers = [start + index * step for index in range(count)]

    to_plain = int if all(isinstance(end, int) for end in ends) else float
    return [to_plain(number) for number in numbers]


def _is_infinite(value: Any) -> bool:
    """Whether a value is an infinite number, or a list or mapping with one."""
    if isinstance(value, list):
        return any(map(_is_infinite, value))
    if isinstance(value, dict):
        return any(map(_is_infinite, value.values()))
    return isinstance(value, float) and math.isinf(value)


def _unquoted(value: Any) -> Any:
    """A value of Hydra's grammar as plain Python."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_unquoted(element) for element in value]
    if isinstance(value, dict):
        return {_unquoted(key): _unquoted(element) for key, element in value.items()}
    return value


def distinct(values: list[Any]) -> list[Any]:
    """Each value once, in the order given."""
    # By their text, because 1, 1.0 and True are equal.
    by_text = {repr(value): value for value in values}
    return list(by_text.values())


@contextmanager
def hydra_session(config_dir: Path | None) -> Iterator[None]:
    """Hydra over our conf/, with a user's folder in front.

    An application's own Hydra is put back afterwards.
    """
    application_hydra = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()

    try:
        version.setbase("1.3")
        start_hydra(shipped("conf"), config_dir)
        OmegaConf.register_new_resolver("basename", _last_path_parts, replace=True)
        yield
    finally:
        GlobalHydra.instance().hydra = application_hydra


def start_hydra(conf: Path, config_dir: Path | None) -> None:
    """What `hydra.initialize_config_dir` does, with a user's folder in front of ours.

    Hydra's public functions take one folder, hence its internals; a test fails when a release
    moves them.
    """
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path

    search_path = create_config_search_path(str(conf.resolve()))
    if config_dir is not None:
        search_path.prepend(provider="user", path=f"file://{config_dir.resolve()}")
    Hydra.create_main_hydra2(task_name="pml", config_search_path=search_path)


def compose_root(
    root: str, overrides: list[str], *, with_choices: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree of a root file and its options; inside a `hydra_session`.

    Args:
        root: name of the YAML file, without its ending.
        overrides: `group=option`.
        with_choices: whether the root file has groups, and their options are returned.

    Returns:
        The settings by short key and group, and the option of each group.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        composed = compose(root, overrides, return_hydra_config=with_choices)
        tree: Any = OmegaConf.to_container(composed)
    except RecursionError as error:
        reason = "nested too deep, or a value holds itself"
        raise UserError(f"{root} {' '.join(overrides)}: {reason}") from error
    # OmegaConf raises OSError for a file that holds a number; PyYAML what it likes, for a tag whose
    # value does not fit.
    except (
        HydraException,
        OmegaConfBaseException,
        YAMLError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise UserError(f"{root} {' '.join(overrides)}: {one_line(error)}") from error

    settings = {str(key): value for key, value in tree.items()}
    if not with_choices:
        return settings, {}

    choices = settings.pop("hydra")["runtime"]["choices"]
    missing = [group for group in GROUPS if not choices.get(group) and group not in settings]
    if missing:
        names = ", ".join(missing)
        reason = "its list `defaults` needs one of each group"
        raise UserError(f"{root}.yaml: chooses no option of {names}; {reason}")
    return settings, {group: str(choices.get(group)) for group in GROUPS}


def _last_path_parts(path: Any, count: int = 1) -> str:
    """The last parts of a path, as a name: ${basename:./a/final,2} is a-final.

    Other characters than those of a name become "-".
    """
    location = Path(str(path))
    # "." and ".." have no name of their own.
    if location.name in ("", ".."):
        location = location.resolve()
    folders = [folder for folder in location.parts if folder != "/"]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(folders[-count:]))
    return re.sub(r"^[^A-Za-z0-9]+", "", name).rstrip("-") or "model"
