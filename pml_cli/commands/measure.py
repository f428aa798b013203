"""`pml measure`: what an adapter holds of a text or of facts, whoever trained it.

Trains nothing. `measure.json` keeps an entry for each adapter and text, `measure.csv` a row.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pml_cli.config.load import moved_files, read_run
from pml_cli.config.measure import MeasureRequest
from pml_cli.config.schema import Run
from pml_cli.data.generic_text import KINDS, generic_pool
from pml_cli.data.opened import samples_of, source_of, tokens_hash
from pml_cli.data.resolve import resolved_run
from pml_cli.data.source import Sample
from pml_cli.data.whole import within_context
from pml_cli.data.windows import trained_targets
from pml_cli.errors import UserError
from pml_cli.evaluation import peft_folder
from pml_cli.evaluation.finished_runs import check_code_is_allowed, read_environment
from pml_cli.evaluation.forgetting_runs import ALL_TOKENS
from pml_cli.format import counted
from pml_cli.io import json_text
from pml_cli.launch.signals import Signals, Stopped
from pml_cli.report import measure_folder
from pml_cli.report.output import consoles, print_json
from pml_cli.report.progress import CountDisplay
from pml_cli.report.sweep_summary import exit_code
from pml_cli.report.tables.measure import measure_table
from pml_cli.results.folder import RunFolder, writable_folder
from pml_cli.results.read import one_run

if TYPE_CHECKING:
    from pml_cli.evaluation.peft_adapter import PeftAdapter
    from pml_cli.model.adapter_bank import AdapterBank
    from pml_cli.model.split_model import SplitModel


@dataclass(frozen=True, kw_only=True)
class _Adapter:
    """The folder of an adapter, and the run of pml that trained it."""

    folder: Path
    config: dict[str, Any]

    own: RunFolder | None
    """None: another program trained it."""

    learned: Run | None
    """The settings of that run."""

    @property
    def recorded_in(self) -> Path:
        """The file that names the base model."""
        return self.own.config if self.own else self.folder / peft_folder.CONFIG_FILE


def run(
    asked: MeasureRequest,
    stdout: Console,
    *,
    harm: bool = True,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure one adapter on one text or file of facts, write and print it.

    Args:
        asked: the adapter, the data, and where the results go.
        stdout: to print to.
        harm: whether to measure the loss of other text too.
        as_json: print the entry as JSON; the rest goes to standard error.
        quiet: show no progress, only the result.

    Returns:
        Exit code 0; 128 and more after a signal.

    Raises:
        UserError: no adapter, not a LoRA, of another model; a text that cannot be read.
    """
    console, progress = consoles(stdout, as_json=as_json, quiet=quiet)
    out = asked.request.out
    measure_folder.check(out)
    adapter = _adapter(asked.adapter)
    # What was recorded may have been moved.
    with moved_files(adapter.recorded_in):
        measured, left_out = _run(asked, adapter)
        samples = samples_of(measured)
    _say_left_out(measured, left_out)

    try:
        with Signals():
            entry = _measure(measured, adapter, samples, harm=harm, progress=progress)
    except Stopped as stopped:
        console.print("interrupted; nothing was written")
        return exit_code(stopped, console)

    writable_folder(out)
    names = measure_folder.write(out, entry)
    console.print(measure_table(entry))
    console.print(f"in {out}: {', '.join(names)}", highlight=False)
    if as_json:
        print_json(stdout, json_text(entry))
    return 0


def _adapter(path: Path) -> _Adapter:
    """The adapter that a path names: a folder of PEFT, a run folder, or one with a single run.

    Raises:
        UserError: there is none.
    """
    folder = peft_folder.adapter_folder(path)
    if folder is None:
        if not path.is_dir():
            reason = "a file; give" if path.exists() else "no such folder; give"
            raise UserError(f"{path}: {reason} the one with adapter_config.json")
        try:
            folder = one_run(path).adapter
        except UserError as error:
            raise UserError(
                f"{path}: neither a PEFT adapter (no adapter_config.json) nor a pml run"
            ) from error

    config = peft_folder.read_config(folder)
    own = RunFolder(folder.absolute().parent.parent, folder.absolute().parent.name)
    if not own.config.is_file():
        return _Adapter(folder=folder, config=config, own=None, learned=None)
    return _Adapter(folder=folder, config=config, own=own, learned=read_run(own.config))


def _run(asked: MeasureRequest, adapter: _Adapter) -> tuple[Run, int]:
    """The model, data and length that are measured, resolved; and the tokens left out of a text.

    Raises:
        UserError: no data, or a model or data that cannot be read.
    """
    learned = adapter.learned
    recorded = learned.model if learned else None
    is_asked = "model" in asked.given or "model.path" in asked.given
    if recorded is None and not is_asked:
        recorded = peft_folder.recorded_model(adapter.folder, adapter.config)
    model = asked.model(recorded or asked.request.runs[0].model)
    data = asked.data(learned.data if learned else None)

    if adapter.own is not None and "model" not in asked.given:
        allowed = "model.trust_remote_code" in asked.given
        assert learned is not None
        check_code_is_allowed(learned, adapter.own, allowed)
    # Reuse the recorded data settings as they are: resolving again could pick other defaults.
    measured = Run(model=model, data=data, seqlen=asked.seqlen(learned))
    measured, left_out = within_context(measured)
    return resolved_run(measured), left_out


def _say_left_out(measured: Run, left_out: int) -> None:
    if left_out:
        read = counted(measured.seqlen, "token")
        line = f"measured: the first {read} of the text, which is what the model reads at once"
        Console(stderr=True, markup=False).print(f"{line} ({left_out} left out)", style="yellow")


def _measure(
    measured: Run,
    adapter: _Adapter,
    samples: list[Sample],
    *,
    harm: bool,
    progress: Console,
) -> dict[str, Any]:
    """The entry of measure.json."""
    # Imported here: torch takes seconds, and bad input is found before.
    from pml_cli.evaluation import adapter_measure

    base, bank, peft = _loaded(measured, adapter)
    source = source_of(measured)
    held_out = source.held_out(measured.seqlen)
    inputs = adapter_measure.MeasurementInputs(
        samples=samples,
        held_out=held_out,
        source_nats=source.entropy,
        texts=_texts(measured, samples) if harm else {},
    )
    with CountDisplay(progress, "measuring", "adapters", piped_line="adapters measured") as display:
        display.show(0, 1)
        fields = adapter_measure.measure(base, bank, inputs, display.stage)

    return {
        "adapter": str(adapter.folder),
        "weights": peft.hash,
        "scale": peft.scale(next(iter(peft.A))),
        "model": measured.model.name,
        "model_path": measured.model.path,
        "dtype": measured.model.dtype,
        "data": measured.data.label,
        "text": getattr(measured.data, "path", None),
        "tokens": tokens_hash(samples),
        "rank": peft.rank,
        "modules": len(peft.A),
        "layer": base.first_layer(bank),
        "trainable_parameters": peft.parameter_count,
        "samples": len(samples),
        "target_tokens": sum(len(sample.target) for sample in samples),
        **fields,
    }


def _loaded(measured: Run, adapter: _Adapter) -> tuple[SplitModel, AdapterBank, PeftAdapter]:
    """The model, and the adapter on it.

    Raises:
        UserError: a model that cannot be loaded, or is not the one of the adapter.
    """
    from pml_cli.evaluation.adapters import check_weights
    from pml_cli.evaluation.peft_adapter import bank_of, read_adapter
    from pml_cli.evaluation.subject import EvalRun
    from pml_cli.model.loading import load_model

    peft = read_adapter(adapter.folder, adapter.config)
    base = load_model(measured.model)
    if adapter.own is not None and adapter.learned is not None:
        weights = read_environment(adapter.own)["base_weights"]
        # In another dtype the same weights have another hash.
        if measured.model.dtype == adapter.learned.model.dtype:
            subject = EvalRun(
                id=adapter.own.id,
                run=dataclasses.replace(measured, rank=peft.rank),
                samples=[],
                adapter=adapter.folder,
                weights=weights,
            )
            check_weights(base, [subject])
    return base, bank_of(base, peft), peft


def _texts(measured: Run, samples: list[Sample]) -> dict[str, list[Sample]]:
    """The windows that `pml forgetting` measures harm on, without what is measured here."""
    targets = trained_targets(measured, samples)
    texts = {}
    for kind in KINDS:
        pool = generic_pool(measured.model, kind, "held_out")
        texts[kind] = pool.windows_without(targets, ALL_TOKENS)
    return texts
