"""Proof before an adapter is handed over: what it answers, how, and what it leaves unchanged.

Of one finished run: its facts by the script that a reader would run, merged, rounded and in
bfloat16; paraphrases of its questions; questions whose answers must not change; the chance that
sampling writes each fact. Without torch, so that reports read it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pml_cli.config.load import read_run
from pml_cli.data.generic_text import dialogues
from pml_cli.data.opened import tokens_hash
from pml_cli.data.source import Sample
from pml_cli.errors import UserError
from pml_cli.evaluation.finished_runs import (
    check_code_is_allowed,
    read_environment,
    trained_samples,
)
from pml_cli.io import jsonable, remove, write_json
from pml_cli.results.folder import RunFolder
from pml_cli.stats import Proportion
from pml_cli.validation import read_json

# Version of the cached proof; raise it when a measurement changes.
FORMAT = 1

# The status of what was measured.
MEASURED = "measured"

# Start of the status of a script that failed here, for a reason that may not last.
NOT_RUN_HERE = "could not be run here"

# Start of the status of a script that took longer than it was given.
STOPPED = "stopped after"

# Tokens compared of an answer to a neighbouring question: longer answers differ sooner or later.
NEIGHBOUR_TOKENS = 32

# In an adapter's folder.
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ScriptProof:
    """What the script in the adapter's README.md prints, run as its reader runs it."""

    status: str
    """`measured`, or in a line why it could not be run to its end here."""

    asked: int
    """Number of facts that it answered."""

    whole: int
    """Number of facts whose answer equals the target, character by character."""

    seconds: float
    """Seconds it took, including loading the model."""


@dataclass(frozen=True, kw_only=True)
class ConditionProof:
    """The facts under one condition of deployment (`conditions.py`)."""

    status: str
    """`measured`, or in a line why it was not."""

    whole: int | None
    """Facts of which every token is right; None: not measured."""

    least_margin: float | None
    """The least logit margin of a target token; None: not measured."""


@dataclass(frozen=True, kw_only=True)
class VariantsProof:
    """Paraphrases of the questions: asked, never trained."""

    facts: int
    """Facts that have any."""

    exact: Proportion
    """Share of paraphrases answered exactly; the interval is over facts."""

    f1: float
    """Mean token F1 of the answers (`answers.py`), each cut to as many tokens as its target has."""

    base_exact: Proportion
    """`exact` for the model without the adapter."""

    base_f1: float
    """`f1` for the model without the adapter."""


@dataclass(frozen=True, kw_only=True)
class NeighboursProof:
    """Questions whose answers must not change."""

    source: str
    """`file`: those that the file of facts names; `generic`: everyday questions, where it names
    none."""

    tokens: int
    """Tokens of each answer that are compared, at most."""

    unchanged: Proportion
    """Share of questions that are answered the same with and without the adapter."""

    f1: float
    """Mean token F1 of the adapter's answers against those of the model without it."""

    answer_f1: float | None
    base_answer_f1: float | None
    """Mean token F1, with the adapter and without, against the answers that the file gives; None:
    it gives none."""


@dataclass(frozen=True, kw_only=True)
class FactProof:
    """One fact: a row of facts.csv."""

    question: str
    answer: str
    """The target, without its end."""

    whole: bool
    """Whether greedy decoding writes it whole, its end included."""

    written: str
    """What greedy decoding writes."""

    position: int | None
    """Position of the first wrong token in the target, from 0; None: none is wrong."""

    expected: str | None
    got: str | None
    """The first wrong token as text, as it should be and as it is."""

    least_margin: float
    """The least logit margin of its tokens, teacher-forced."""

    log10_p: float
    """Log 10 of the chance that sampling at temperature 1 writes it whole."""

    variants: int
    variants_exact: int
    """Paraphrases asked, and those answered exactly."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was measured of one finished run."""

    run: str
    """Id of the run."""

    whole: int
    """Facts that greedy decoding writes whole."""

    facts: Sequence[FactProof]
    """Every fact, in the order of the run."""

    script: ScriptProof
    conditions: Mapping[str, ConditionProof]
    """Proof of each condition, by its name in `conditions.py`: trained, merged, bf16,
    adapter_int8, base_int8 ..."""

    variants: VariantsProof | None
    """None: the facts have none."""

    neighbours: NeighboursProof | None
    """None: a model without a tokenizer."""

    least_log10_p: float
    """The least `log10_p` of a fact."""

    median_log10_p: float

    def fields(self) -> dict[str, Any]:
        """For JSON: everything but the facts one by one."""
        fields: dict[str, Any] = jsonable(self)
        fields["facts"] = len(self.facts)
        return fields


class KeptFields(TypedDict):
    """The file that keeps a proof."""

    format: int
    key: str
    proof: dict[str, Any]


def generic_questions() -> list[str]:
    """Everyday questions, each the first of a dialogue that nothing was trained on."""
    return [dialogue[0][0] for dialogue in dialogues("held_out")]


def say_nothing(stage: str) -> None:
    """Take no notice of what is being measured."""


def prove(
    folder: RunFolder,
    *,
    device: str = "auto",
    trust_remote_code: bool = False,
    script_seconds: float = 600,
    on_stage: Callable[[str], None] = say_nothing,
    cache: Path | None = None,
) -> Proof:
    """Prove what a finished run knows.

    Args:
        folder: of the run.
        device: `model.device` to measure on; the script runs where it puts the model itself.
        trust_remote_code: whether a model that brings code of its own may run it.
        script_seconds: after which the script is stopped; what it answered counts. 0: it is not
            run.
        on_stage: called with what is measured next, in a few words.
        cache: file that keeps the proof, read back while the run and its facts are the same;
            None: measure always.

    Raises:
        UserError: the run cannot be read, or its model is not the one it was trained on.
    """
    run = read_run(folder.config)
    check_code_is_allowed(run, folder, trust_remote_code)
    samples = trained_samples(run, folder.path)
    if tokens_hash(samples) != read_environment(folder)["tokens"]:
        reason = f"its data is no longer what it was trained on ({run.data.source})"
        raise UserError(f"{folder.path}: {reason}")

    if cache is not None:
        _set_aside(cache)
    key = _key(folder, samples, with_script=script_seconds > 0)
    proof = None if cache is None else _read(cache, key)
    if proof is None or _has_more_time(proof.script, script_seconds):
        # Imported here: torch takes seconds.
        from pml_cli.evaluation.proving import Prover

        prover = Prover(folder, run, samples)
        proof = prover.prove(device=device, script_seconds=script_seconds, on_stage=on_stage)
        # A fault of the machine is not kept: the same command tries again.
        is_final = not proof.script.status.startswith(NOT_RUN_HERE)
        if cache is not None and is_final:
            write_json(cache, {"format": FORMAT, "key": key, "proof": jsonable(proof)})
    return proof


def _has_more_time(script: ScriptProof, seconds: float) -> bool:
    """Whether a script that was stopped would now have more seconds than it took."""
    return script.status.startswith(STOPPED) and seconds > script.seconds


def _key(folder: RunFolder, samples: Sequence[Sample], *, with_script: bool) -> str:
    """A hash of all that decides the proof of a run."""
    questions = [(sample.variants, sample.neighbours) for sample in samples]
    content = [
        FORMAT,
        folder.id,
        hashlib.sha256((folder.adapter / WEIGHTS_FILE).read_bytes()).hexdigest(),
        questions,
        generic_questions(),
        with_script,
    ]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _set_aside(cache: Path) -> None:
    """Remove what cannot be a kept proof: a folder, a pipe, or a link, not what it leads to.

    Raises:
        OSError: it cannot be removed.
    """
    # A link to itself has no end to look at.
    if cache.is_symlink() or (cache.exists() and not cache.is_file()):
        remove(cache)


def _read(path: Path, key: str) -> Proof | None:
    """The proof that a file keeps; None where it is missing, damaged, or of something else."""
    try:
        kept = read_json(path, KeptFields, "")
        is_same = kept["format"] == FORMAT and kept["key"] == key
        return TypeAdapter(Proof).validate_python(kept["proof"]) if is_same else None
    except (UserError, ValidationError):
        return None
