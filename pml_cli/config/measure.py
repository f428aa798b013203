"""The command line of `pml measure`: an adapter, a text, and settings of model and data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pml_cli.config.memorize import data_of_files, text_fault
from pml_cli.config.request import load
from pml_cli.config.schema import ALL_TOKENS, Data, Model, Request, Run
from pml_cli.errors import UserError
from pml_cli.io import expand_home

# Groups and keys that are about what is measured; all others are about training.
GROUPS = ("model", "data")
KEYS = ("seqlen", "out")

# Where a text begins by itself; where another one was begun says nothing of it.
BEGINNING: dict[str, Any] = {"seed": 0, "start": ""}


@dataclass(frozen=True, kw_only=True)
class MeasureRequest:
    """What `pml measure` asks for."""

    adapter: Path
    """Path as given: the folder of an adapter or of a run."""

    text: Path | None
    """A file of text or of facts; None: the data is a setting, or what the run has learned."""

    request: Request
    """One run, of which model, data and length count, and the folder of the results."""

    given: frozenset[str]
    """Keys of the command line, and those that the text sets."""

    def model(self, recorded: Model) -> Model:
        """The base model: the recorded one but for what the command line says.

        Args:
            recorded: what the adapter's folder tells.
        """
        asked = self.request.runs[0].model
        if "model" in self.given:
            return asked
        changes = self._changes("model", asked)
        if "path" in changes and "name" not in changes:
            changes["name"] = model_name(changes["path"])
        return dataclasses.replace(recorded, **changes)

    def data(self, learned: Data | None) -> Data:
        """What is measured, asked for as the run asked for it where it is of the same kind.

        Args:
            learned: of a run of pml; None: an adapter of another program.

        Raises:
            UserError: there is no text, and none that the adapter is known to have learned.
        """
        asked = self.request.runs[0].data
        if learned is not None and type(learned) is type(asked) and self.text is not None:
            changes = self._changes("data", asked)
            if _is_another_text(learned, asked):
                usual = {name: BEGINNING[name] for name in BEGINNING if hasattr(learned, name)}
                changes = usual | changes
            return dataclasses.replace(learned, **changes)
        if "data" in self.given:
            return asked
        if learned is None:
            raise UserError("TEXT: give a text, a file of facts, or data=...")
        names = {field.name for field in dataclasses.fields(learned)}
        changes = self._changes("data", asked)
        unknown = sorted(set(changes) - names)
        if unknown:
            raise UserError(f"data.{unknown[0]}: not a setting of data={learned.source}")
        return dataclasses.replace(learned, **changes)

    def seqlen(self, learned: Run | None) -> int:
        """How many target tokens; all where neither the command line nor a run says it."""
        if "seqlen" in self.given:
            return self.request.runs[0].seqlen
        is_own = learned is not None and self.text is None and "data" not in self.given
        return learned.seqlen if learned is not None and is_own else ALL_TOKENS

    def _changes(self, group: str, asked: Any) -> dict[str, Any]:
        """The settings of a group that the command line gives."""
        prefix = f"{group}."
        names = [key.removeprefix(prefix) for key in sorted(self.given) if key.startswith(prefix)]
        return {name: getattr(asked, name) for name in names}


def _is_another_text(learned: Data, asked: Data) -> bool:
    """Whether a file holds another text than the one that was learned."""
    old, new = (getattr(data, "path", None) for data in (learned, asked))
    if old is None or new is None:
        return old != new
    try:
        return Path(old).read_bytes() != Path(new).read_bytes()
    except OSError:
        # The one that was learned may have been moved.
        return False


def model_name(path: str) -> str:
    """A label for the model at a path: its last part, without characters that a name cannot have.

    Args:
        path: a folder, a file or a name on the hub.
    """
    last = path.rstrip("/").rpartition("/")[2]
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in last)
    return name.lstrip("._-") or "model"


def load_measure(arguments: Sequence[str], config_dir: Path | None = None) -> MeasureRequest:
    """What `pml measure ARGUMENTS` asks for.

    Args:
        arguments: the adapter, a text, and settings.
        config_dir: a folder laid out like conf/, looked up first.

    Raises:
        UserError: all faults at once, one line each.
    """
    paths, overrides = _split(arguments)
    if not paths:
        raise UserError("ADAPTER: give the folder of an adapter (adapter_config.json is in it)")
    adapter, *texts = paths
    if len(texts) > 1:
        raise UserError(f"{texts[1]}: one text at a time; {texts[0]} is given already")

    given = {override.partition("=")[0] for override in overrides}
    _check_keys(given)
    if texts:
        chosen = data_of_files(texts, given)
        # Whoever trained the adapter put nothing in front of the text, as far as is known.
        if "data=text" in chosen and "data.prompt" not in given:
            overrides.append("data.prompt=''")
        overrides += chosen
        given |= {"data", "data.path"}

    # A length that nobody gave is decided later: not every source has an end.
    request = load("measure", overrides, config_dir=config_dir)
    return MeasureRequest(
        adapter=adapter,
        text=texts[0] if texts else None,
        request=request,
        given=frozenset(given),
    )


def _split(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Paths and settings; a path may hold an equals sign where it exists.

    Raises:
        UserError: a text that does not exist; a line for each.
    """
    paths: list[Path] = []
    overrides: list[str] = []
    faults = []
    for argument in arguments:
        path = expand_home(argument)
        if "=" in argument and not path.exists():
            overrides.append(argument)
            continue
        paths.append(path)
        # The first one is the adapter.
        reason = text_fault(path) if len(paths) > 1 else ""
        if reason:
            faults.append(f"{path}: {reason}")
    if faults:
        raise UserError(*faults)
    return paths, overrides


def _check_keys(given: set[str]) -> None:
    """Refuse settings of training.

    Raises:
        UserError: a line for each.
    """
    faults = []
    for key in sorted(given):
        if key not in KEYS and key.partition(".")[0] not in GROUPS:
            faults.append(f"{key}: pml measure trains nothing; it takes model, data, seqlen, out")
    if faults:
        raise UserError(*faults)
