"""pml from Python: `import pml_cli as pml`.

    runs = pml.sweep(rank=[1, 2, 4, 8], seqlen=[32, 64, 128], out="outputs/mine")
    (law,) = pml.fit("outputs/mine")
    law.parameters                        # value, low, high by name
    law.predict(seqlen=200)               # the smallest rank that recalls 200 tokens
    pml.tokens(runs.iloc[0])              # nll and p of every token at every logged step

The command line and these functions share what they are built on: the same settings, the same
folders, the same checks. What the command line refuses in one line raises `UserError` with it.
Tables are pandas frames.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from typing_extensions import ParamSpec

from pml_cli.config.override_text import override_of
from pml_cli.config.reports import Predict
from pml_cli.config.setting import faults
from pml_cli.errors import UserError, short_repr, shortened
from pml_cli.io import refused_path
from pml_cli.law.inverse import Question, answer, check_question, parse_target
from pml_cli.law.law_json import Report, load_report

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from pml_cli.config.schema import Request
    from pml_cli.law.fitted_law import FittedLaw
    from pml_cli.results.folder import RunFolder

Folder: TypeAlias = str | os.PathLike[str]
Run: TypeAlias = "Folder | Mapping[str, Any] | pd.Series[Any]"
"""A run: its folder, or its row in what `runs`, `sweep` and `probe` return."""
Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

EXAMPLE = '{"train.lr": 0.02}'


def refusing(function: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
    """A function whose every refusal by a file system is a `UserError`, as on the command line."""

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            path = refused_path(error)
            if path is None:
                raise
            raise UserError(f"{shortened(path)}: {error.strerror}") from error

    return call


@refusing
def sweep(
    *,
    file: Folder | None = None,
    retry: bool = True,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> pd.DataFrame:
    """Train the missing cells among all combinations of the listed values.

    Args:
        file: a sweep file, or the name of a shipped one ("quickstart").
        retry: train again what failed before.
        quiet: show no progress.
        settings: settings by their full key, for example {"train.lr": 0.02}. A list sweeps over
            its values.
        more: settings whose key has no dot, for example rank=[4, 8], data="text",
            out="outputs/mine".

    Returns:
        A frame with one row per finished run of this sweep: the fields of result.json, and
        `folder`.

    Raises:
        UserError: a wrong setting, or a folder that cannot be used.
        RuntimeError: a run failed, or the workers ended too early; runs that have ended are kept.
    """
    from pml_cli.launch.driver import check_workers, plan_sweep, train_sweep
    from pml_cli.report.progress import SweepDisplay

    request = _request("sweep", settings, more, file)
    plan = plan_sweep(request, retry=retry)
    with SweepDisplay.of(plan, _console(quiet)) as display:
        outcome = train_sweep(plan, display, wait=True)
    if outcome.stopped is not None:
        raise KeyboardInterrupt(outcome.message)
    check_workers(outcome, plan.out)

    ids = [cell.id for cell in plan.cells]
    _raise_failures(request.out, ids)
    table = runs(request.out)
    return table[table["id"].isin(ids)].reset_index(drop=True)


@refusing
def probe(
    *, quiet: bool = False, settings: Mapping[str, Any] | None = None, **more: Any
) -> pd.Series[Any]:
    """Train one adapter, logged at a hundred steps.

    Args:
        quiet, settings, more: see `sweep`; each setting takes a single value.

    Returns:
        The fields of result.json, and `folder`.

    Raises:
        UserError: a wrong setting, or a folder that cannot be used.
        RuntimeError: the run failed.
    """
    from pml_cli.commands.probe import train

    request = _request("probe", settings, more)
    console = _console(quiet)
    folder = train(request, console, console)
    _raise_failures(folder.path.parent, [folder.id])
    return runs(folder.path).iloc[0]


@refusing
def runs(*folders: Folder) -> pd.DataFrame:
    """The finished runs below some folders.

    Returns:
        One row a run: the fields of result.json (docs: outputs/README.md), and `folder`.

    Raises:
        UserError: a folder does not exist, or a result is of another format or damaged.
    """
    from pml_cli.results.read import read_runs

    return read_runs([_path("folders", folder) for folder in folders])


@refusing
def tokens(run: Run) -> pd.DataFrame:
    """Every target token of a run at every logged step.

    Returns:
        Columns step, sample, position, token_id, nll (nats), p, margin (logits), correct and the
        others of tokens.parquet.

    Raises:
        UserError: there is no such table, or it cannot be read.
    """
    from pml_cli.results.tokens import IrregularError, read_frame

    path = _folder_of(run).tokens
    try:
        return read_frame(path)
    except (OSError, IrregularError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


@refusing
def samples(run: Run) -> pd.DataFrame:
    """What was asked of a run and what came out: one row a sample, the fields of samples.jsonl.

    Raises:
        UserError: the run has none (earlier versions wrote none), or it cannot be read.
    """
    import pandas as pd

    from pml_cli.results.samples import read_samples

    folder = _folder_of(run)
    rows = read_samples(folder)
    if rows is None:
        raise UserError(f"{folder.samples}: no such file")
    return pd.DataFrame(rows)


@refusing
def fit(
    *folders: Folder,
    by: str | Iterable[str] = (),
    quiet: bool = True,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> list[Law]:
    """Fit the memory law to finished runs, and write the report that `pml fit` writes.

    Args:
        folders: folders of runs, searched at any depth; the report goes to fit/ in the first,
            beside it where that is one run.
        by: settings in which groups are compared.
        quiet: print no tables.
        settings, more: settings of `pml fit`, such as x="effective".

    Returns:
        A law for each group of comparable runs that has one.

    Raises:
        UserError: no folder, a wrong setting, no finished run, or no group with a law.
    """
    if not folders:
        raise UserError("fit: give at least one folder of runs")
    from pml_cli.commands import fit as command
    from pml_cli.config.reports import Fit
    from pml_cli.config.request import load_report as load_settings
    from pml_cli.results.folder import beside

    asked = load_settings("fit", _overrides(settings, more))
    assert isinstance(asked, Fit)
    paths = [_path("folders", folder) for folder in folders]
    # One name is a sequence of letters, too.
    compared = [by] if isinstance(by, str) or not isinstance(by, Iterable) else list(by)
    if not all(isinstance(name, str) for name in compared):
        raise UserError(f"by={short_repr(by)}: must be names of settings")
    command.run(paths, asked, _console(quiet), compared)
    return Law.load_all(asked.out or beside(paths[0], "fit"))


class Law:
    """The laws of one group of runs: of the gain, of exact recall, or both.

    Attributes:
        name: of the group.
        form: which law of the gain was chosen; None where none is identified.
        formula: the same, written out.
        status: of the law of the gain: OK, BOUND_HIT or NOT_IDENTIFIED.
        ranks, lengths: least and largest that were trained.
        parameters: of the law of the gain, value and ends of the 95 % interval by name.
    """

    def __init__(self, fitted: FittedLaw, parameters: pd.DataFrame) -> None:
        self._fitted = fitted
        self.name = fitted.name
        self.form = fitted.form.name if fitted.form else None
        self.formula = fitted.form.formula(fitted.axis.column) if fitted.form else None
        self.status = fitted.status
        self.ranks = fitted.ranks
        self.lengths = fitted.lengths
        self.parameters = parameters

    def __repr__(self) -> str:
        return f"Law({self.name!r}, {self.form}, {self.status})"

    @classmethod
    @refusing
    def load(cls, folder: Folder, group: str | None = None) -> Law:
        """The law of a report.

        Args:
            folder: of `pml fit`, or of the runs whose fit/ it is, or a law.json.
            group: name or slug, where the report has several groups with a law.

        Raises:
            UserError: no report, no law in it, no group of that name, or several groups.
        """
        found = cls.load_all(folder, group)
        if len(found) > 1:
            names = "; ".join(law.name for law in found)
            raise UserError(f"{folder}: {len(found)} groups have a law, give group=: {names}")
        return found[0]

    @classmethod
    @refusing
    def load_all(cls, folder: Folder, group: str | None = None) -> list[Law]:
        """The laws of every group of a report; see `load`."""
        import pandas as pd

        if group is not None and not isinstance(group, str):
            raise UserError(f"group={short_repr(group)}: must be the name of a group")
        report: Report = load_report(_path("folder", folder), group)
        if not report.laws:
            reasons = "; ".join(report.left_out.values())
            raise UserError(f"{folder}: no law was identified: {reasons}")

        laws = []
        for fitted in report.laws:
            rows = report.parameters[fitted.name]
            table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])
            laws.append(cls(fitted, table))
        return laws

    def predict(
        self,
        *,
        rank: float | Iterable[float] | None = None,
        seqlen: float | Iterable[float] | None = None,
        facts: float | Iterable[float] | None = None,
        target: str = "verbatim",
        base: float | None = None,
    ) -> pd.DataFrame:
        """What the law says about runs that were not trained.

        Args:
            rank: one or several, also an array or a column of a table: the longest length of each;
                with `seqlen`, everything about each pair.
            seqlen: target tokens; alone, the least rank of each.
            facts: numbers of facts, all of which are to be recalled.
            target: verbatim, loss=NATS or bits=BITS.
            base: loss of the base model, nats per token; that of the trained texts when None.

        Returns:
            A row each; of every predicted quantity its value, and the ends of its 95 % band as
            NAME_low and NAME_high. `outside` says what lies beyond the trained runs.

        Raises:
            UserError: nothing asked, a value that `pml predict` refuses, or the law that is needed
                is not identified.
        """
        import pandas as pd

        wanted = parse_target(str(target))
        asked = Predict(
            rank=_numbers("rank", rank),
            seqlen=_numbers("seqlen", seqlen),
            facts=_numbers("facts", facts),
            base=None if base is None else _number("base", base),
        )
        # As on the command line, where the first one is said.
        if lines := faults(asked):
            raise UserError(lines[0])
        question = Question(
            ranks=asked.rank, lengths=asked.seqlen, facts=asked.facts, base=asked.base
        )
        check_question(question, wanted)
        answered = answer(self._fitted, wanted, question)
        if "reason" in answered:
            raise UserError(f"{self.name}: {answered['reason']}")
        return pd.DataFrame([_flat(row) for row in answered["rows"]])


def _request(
    command: str,
    settings: Mapping[str, Any] | None,
    more: Mapping[str, Any],
    file: Folder | None = None,
) -> Request:
    """Settings of a command that trains, checked as on the command line."""
    from pml_cli.config.cache_key import forget_files
    from pml_cli.config.request import load

    # They may have been edited since the last call.
    forget_files()
    sweep_file = None if file is None else _path("file", file)
    return load(command, _overrides(settings, more), sweep_file)


def _overrides(settings: Mapping[str, Any] | None, more: Mapping[str, Any]) -> list[str]:
    """`key=value` in Hydra's grammar, a list as several values.

    Raises:
        UserError: `settings` is no mapping, a key is given twice, or no setting has such a value.
    """
    if settings is None:
        settings = {}
    if not isinstance(settings, Mapping):
        raise UserError(f"settings={short_repr(settings)}: must be a mapping, such as {EXAMPLE}")
    twice = sorted(set(settings) & set(more))
    if twice:
        raise UserError(f"{twice[0]}: given twice, also in settings=")
    return [override_of(key, value) for key, value in {**settings, **more}.items()]


def _path(name: str, value: Folder) -> Path:
    """A path that was given.

    Args:
        name: of the argument, for messages.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise UserError(f"{name}={short_repr(value)}: must be a path, a text or pathlib.Path")
    return Path(value)


def _console(quiet: bool) -> Console:
    from rich.console import Console

    return Console(markup=False, emoji=False, quiet=quiet)


def _folder_of(run: Run) -> RunFolder:
    """The run folder of a run.

    Raises:
        UserError: there is none.
    """
    from pml_cli.results.folder import RunFolder

    folder: Any = run
    # A row of the table of runs, also as a dict.
    is_row = isinstance(folder, Mapping) or hasattr(folder, "to_dict")
    if is_row and getattr(folder, "ndim", 1) == 1 and "folder" in folder:
        folder = folder["folder"]
    if not isinstance(folder, str | os.PathLike):
        raise UserError(
            f"run: must be the folder of a run or one row of runs(), not {type(run).__name__}"
        )
    path = _path("run", folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    return RunFolder(path.parent, path.name)


def _raise_failures(out: Path, ids: Sequence[str]) -> None:
    """Raise where any of these runs failed."""
    from pml_cli.results.read import read_failures

    reasons = {name: why for name, why in read_failures(out).items() if name in set(ids)}
    if reasons:
        name, why = next(iter(reasons.items()))
        raise RuntimeError(f"{len(reasons)} of {len(ids)} runs failed; {name}: {why}")


def _numbers(name: str, values: float | Iterable[float] | None) -> list[float]:
    """One number or several, such as a list, an array or a column of a table.

    Raises:
        UserError: something else.
    """
    if values is None:
        return []
    # An array without any dimension is one number.
    plain = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, Iterable) and not isinstance(plain, (str, bytes, Mapping)):
        return [_number(name, value) for value in plain]
    return [_number(name, plain)]


def _number(name: str, value: Any) -> float:
    """A number; beyond all floats is infinite.

    Raises:
        UserError: something else.
    """
    # An array without any dimension is one number.
    if getattr(value, "ndim", None) == 0:
        value = value.tolist()
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number:
        raise UserError(f"{name}={short_repr(value)}: must be a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an answer, its bands as columns of their own."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {name: value["value"]}
            flat |= {f"{name}_{end}": value[end] for end in ("low", "high")}
        else:
            flat[name] = value
    return flat
