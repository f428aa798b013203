"""One declaration a setting: what it allows, how it is worded, and that every setting has one."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pml_cli.config import registry
from pml_cli.config.reports import REPORTS
from pml_cli.config.schema import Run, Train
from pml_cli.config.setting import (
    DISCRIMINATORS,
    Settings,
    annotation,
    declaration_of,
    faults,
    own_faults,
    setting,
    type_text,
    value_text,
)

CLASSES = [
    *(owner for group in registry.GROUPS for owner in registry.declared(group).values()),
    *REPORTS.values(),
    Run,
]


@dataclass(kw_only=True)
class Oven(Settings):
    """Settings with one of each constraint."""

    heat: float = setting(
        180.0, help="temperature", unit="°C", minimum=0, below=300, finite=True, special={0: "off"}
    )
    shelf: int | None = setting(None, help="shelf", minimum=1, maximum=4, special={None: "any"})
    mode: str = setting("fan", help="mode", choices=("fan", "grill", "both"))
    door: str = setting("shut", help="door", choices=("shut", "open"))
    dishes: list[str] = setting(["pie"], help="dishes", required=True, allowed="at least one dish")
    minutes: list[int] = setting([], help="alarms", above=0)
    label: str = setting("a", help="label", pattern="[a-z]+", allowed="small letters")
    recipe: str | None = setting(None, help="recipe", path="existing file")

    def validate(self) -> Iterator[str]:
        if self.door == "open" and self.heat > 0:
            yield "door=open: must be shut while the heat is on"


def test_defaults_are_their_own():
    first, second = Oven(), Oven()
    assert faults(first) == []
    first.dishes.append("cake")
    assert second.dishes == ["pie"]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"heat": -1.0}, "heat=-1: must be at least 0 and below 300 and finite (°C; 0: off)"),
        ({"heat": 300.0}, "heat=300: must be at least 0 and below 300 and finite (°C; 0: off)"),
        ({"heat": math.nan}, "heat=nan: must be at least 0 and below 300 and finite (°C; 0: off)"),
        ({"shelf": 5}, "shelf=5: must be null or from 1 to 4"),
        ({"mode": "steam"}, "mode=steam: must be one of fan, grill, both"),
        ({"door": "ajar", "heat": 0.0}, "door=ajar: must be shut or open"),
        ({"dishes": []}, "dishes=[]: must be at least one dish"),
        ({"minutes": [3, 0]}, "minutes=0: must be above 0"),
        ({"label": "a b"}, "label=a b: must be small letters"),
        ({"recipe": "/nowhere"}, "recipe=/nowhere: no such file"),
        ({"door": "open"}, "door=open: must be shut while the heat is on"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(values, line):
    assert faults(Oven(**values)) == [line]
    assert faults(Oven(**values), "oven.") == [f"oven.{line}"]


def test_infinity_is_refused_only_where_it_has_no_meaning():
    assert faults(Oven(heat=math.inf)) != []
    assert faults(Train(clip=math.inf)) == []
    assert faults(Train(lr=math.inf)) == ["lr=inf: must be null or above 0 and finite"]


def test_the_settings_inside_of_settings_are_checked_under_their_names():
    run = Run(rank=0, train=Train(steps=0))
    assert [line.split("=")[0] for line in faults(run)] == ["rank", "train.steps"]
    assert [line.split("=")[0] for line in own_faults(run)] == ["rank"]


def test_help_names_unit_choices_and_special_values():
    heat = declaration_of(Oven, "heat")
    mode = declaration_of(Oven, "mode")
    assert heat is not None
    assert mode is not None
    assert heat.help_text() == "temperature (°C; 0: off)"
    assert mode.help_text() == "mode (one of fan, grill, both)"


def test_types_in_words():
    assert annotation(Oven, "shelf") == (int, True)
    assert annotation(Oven, "minutes") == (list, False)
    assert type_text(Oven, "shelf") == "null or an integer"
    assert type_text(Oven, "heat") == "a number"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "null"),
        (4.0, "4"),
        (12345678.0, "12345678"),
        (0.5, "0.5"),
        ("a\nb", "a b"),
        ([1, 2], "[1, 2]"),
    ],
)
def test_values_are_shown_as_one_writes_them(value, text):
    assert value_text(value) == text


@pytest.mark.parametrize("owner", CLASSES, ids=lambda owner: owner.__name__)
def test_every_setting_is_declared_with_a_help(owner):
    assert issubclass(owner, Settings)
    assert owner.__doc__
    for field in dataclasses.fields(owner):
        assert field.kw_only, f"{field.name} may be given by position"
        is_group = field.name in registry.GROUPS
        if not is_group and field.name not in DISCRIMINATORS:
            declared = declaration_of(owner, field.name)
            assert declared is not None, field.name
            assert declared.help, field.name


@pytest.mark.parametrize("owner", CLASSES, ids=lambda owner: owner.__name__)
def test_the_defaults_are_allowed(owner):
    # Two sources need a path of the user's.
    assert [line for line in faults(owner()) if "must be given with" not in line] == []
