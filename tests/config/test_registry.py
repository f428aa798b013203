"""The registry: a new file in a group's package is known at once, and a broken one is named."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pml_cli.config import registry
from pml_cli.config.request import load
from pml_cli.config.schema import Loss
from pml_cli.config.setting import setting
from pml_cli.errors import UserError

LOSS = '''
"""A loss."""
from dataclasses import dataclass
from pml_cli.config.registry import register
from pml_cli.config.schema import Loss
from pml_cli.config.setting import setting

@register("loss", "planted")
@dataclass(kw_only=True)
class PlantedLoss(Loss):
    kind: str = "planted"
    gamma: float = setting(2.0, help="exponent", minimum=0)
'''


@pytest.fixture
def losses(tmp_path: Path, monkeypatch):
    """An empty package in the place of the losses' own; returns its folder."""
    package = tmp_path / "planted_losses"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.HOMES, "loss", "planted_losses")
    monkeypatch.setitem(registry._classes, "loss", dict(registry._classes["loss"]))
    registry._import_modules.cache_clear()
    yield package
    registry._import_modules.cache_clear()
    for name in [name for name in sys.modules if name.startswith("planted_losses")]:
        del sys.modules[name]


def test_a_file_in_the_package_is_all_it_takes(losses):
    (losses / "planted.py").write_text(LOSS)
    declared = registry.declared("loss")["planted"]
    assert declared.__name__ == "PlantedLoss"
    assert registry.settings_class("loss", {"kind": "planted"}) is declared


def test_a_module_that_does_not_import_is_named(losses):
    (losses / "broken.py").write_text("import no_such_library\n")
    with pytest.raises(ImportError, match=r"loss=.*planted_losses\.broken.*no_such_library"):
        registry.declared("loss")


def test_a_request_names_the_module_that_does_not_import(losses):
    (losses / "broken.py").write_text("import no_such_library\n")
    with pytest.raises(ImportError, match=r"planted_losses\.broken"):
        load("probe", [])


def test_an_unknown_kind_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"loss\.kind=memft_oz: did you mean 'memft_ot'\?"):
        registry.settings_class("loss", {"kind": "memft_oz"})


def test_two_classes_cannot_share_a_name(losses):
    registry.declared("loss")

    @dataclass(kw_only=True)
    class Impostor(Loss):
        kind: str = "sft"
        strength: float = setting(1.0, help="strength")

    with pytest.raises(ValueError, match="'sft' is already"):
        registry.register("loss", "sft")(Impostor)


def test_the_name_registered_is_the_default_of_the_field():
    with pytest.raises(ValueError, match="kind is 'sft', registered as 'other'"):
        registry.register("loss", "other")(registry.declared("loss")["sft"])


def test_groups_with_one_class_need_no_kind():
    assert registry.settings_class("train", {"steps": 3}).__name__ == "Train"


@pytest.mark.parametrize("group", registry.GROUPS)
def test_settings_are_found_without_heavy_imports(group):
    code = (
        "import sys\n"
        "from pml_cli.config import registry\n"
        f"assert registry.declared({group!r})\n"
        "heavy = {'torch', 'transformers', 'hydra', 'omegaconf', 'pandas', 'matplotlib', 'scipy',"
        " 'numpy', 'submitit', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
