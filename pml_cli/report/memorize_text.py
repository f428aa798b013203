"""The answer of `pml memorize` in words: for the terminal, and for the adapter's README.md."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pml_cli.evaluation.proof import MEASURED, NEIGHBOUR_TOKENS, NeighboursProof, Proof
from pml_cli.format import counted, duration_text, percent, three_digits
from pml_cli.report.forgetting_text import meaning_of_harm
from pml_cli.report.memorize_report import MemorizeReport
from pml_cli.report.tables.samples import QUESTION_WIDTH, TOKEN_WIDTH, shown
from pml_cli.stats import Proportion

# Conditions of a proof in words, in the order in which they are said.
CONDITIONS = {
    "merged": "merged",
    "bf16": "bf16",
    "adapter_int8": "int8 adapter",
    "base_int8": "int8 base",
}

# Facts that are named where some are not known.
FAILED_FACTS = 3

# Log 10 of the chance of a fact, below which sampling is warned of: even odds.
LIKELY_LOG10_P = math.log10(0.5)

SECTION = "## What it knows, and what it harms"


def rank_text(report: MemorizeReport) -> str:
    """The least rank with its band; where there is none, the best one."""
    answer = report.answer
    if not answer.reached:
        return f"none within the limits; the best is rank {answer.rank} ({report.run})"

    return f"{answer.rank} ({band_text(report)}), run {report.run}"


def band_text(report: MemorizeReport) -> str:
    """What is known of the ranks below a rank that keeps the limits, and of its seeds."""
    return f"{_below_text(report)}{_seeds_text(report)}"


def _below_text(report: MemorizeReport) -> str:
    """What is known of the ranks below the answer."""
    answer = report.answer
    if answer.low < answer.rank:
        return f"at least {answer.low}"
    below = sorted({cell.trial.rank for cell in report.cells if cell.trial.rank < answer.rank})
    if below:
        # The user may have given a few ranks alone.
        is_next = below[-1] == answer.rank - 1
        return "smaller ones failed" if is_next else f"{below[-1]} failed, none between was tried"
    # The user may have given larger ones alone.
    return "the smallest there is" if answer.rank == 1 else "the smallest that was tried"


def _seeds_text(report: MemorizeReport) -> str:
    """Where not every seed keeps the limits at this rank: those that failed, if they were tried."""
    answer = report.answer
    if answer.confirmed:
        return ""
    of_rank = [cell.trial for cell in report.cells if cell.trial.rank == answer.rank]
    failed = [str(trial.seed) for trial in of_rank if not report.limits.passes(trial)]
    if failed:
        return f"; with seed {answer.seed}, not with {', '.join(failed)}"
    return "; one seed alone"


def facts_text(report: MemorizeReport) -> str:
    """How much is known, and under which conditions."""
    if report.facts is None:
        text = f"{percent(report.answer.trial.recalled)} % of the tokens right"
    else:
        known = round(report.answer.trial.recalled * report.facts)
        text = f"{known} of {report.facts} whole"
    if report.proof is None:
        return text
    counts = dict(_counts(report.proof))
    whole = report.proof.whole
    alike = [label for label, count in counts.items() if count == whole]
    fewer = [f"{label} {count}" for label, count in counts.items() if count != whole]
    if alike:
        text += f", also {', '.join(alike)}"
    parts = [text, *fewer]
    script = report.proof.script
    if script.status != MEASURED:
        answered = f" {script.whole} of {script.asked}" if script.asked else ""
        parts.append(f"its script{answered} ({script.status})")
    return "; ".join(parts)


def _counts(proof: Proof) -> Iterator[tuple[str, int]]:
    """How many facts are whole, by label: by the adapter's script, and under each condition."""
    script = proof.script
    if script.status == MEASURED and script.asked == len(proof.facts):
        yield "by its script", script.whole
    for name, label in CONDITIONS.items():
        condition = proof.conditions.get(name)
        if condition is not None and condition.whole is not None:
            yield label, condition.whole


def forgetting_text(report: MemorizeReport) -> str:
    """Harm in nats, and as perplexity."""
    forgetting = report.forgetting
    if forgetting is None:
        return "not measured"
    # Rounded alike: what is within a limit must not look above it.
    low, high = f"{forgetting.low:.2g}", f"{forgetting.high:.2g}"
    meaning = meaning_of_harm(forgetting.harm)
    return f"{forgetting.harm:.2g} nats/token on other text ({low} to {high}): {meaning}"


def questions_text(neighbours: NeighboursProof) -> str:
    """How many other questions are answered as before."""
    kind = "neighbours" if neighbours.source == "file" else "others"
    unchanged = neighbours.unchanged
    same = f"{unchanged.successes} of {unchanged.trials}"
    return f"{kind} as before {same}, F1 {neighbours.f1:.2f}"


def variants_text(report: MemorizeReport) -> str:
    """Paraphrases answered, and other questions left alone."""
    proof = report.proof
    if proof is None:
        return "not asked"
    variants = proof.variants
    text = "none given (variants)"
    if variants is not None:
        exact = variants.exact
        text = (
            f"{exact.successes} of {exact.trials} exact ({_interval(exact)}), "
            f"F1 {variants.f1:.2f} (base {variants.base_f1:.2f})"
        )
    return text if proof.neighbours is None else f"{text}; {questions_text(proof.neighbours)}"


def _interval(share: Proportion) -> str:
    return f"{100 * share.low:.0f} to {100 * share.high:.0f} %"


def time_text(report: MemorizeReport) -> str:
    """What it took."""
    return f"{duration_text(report.seconds)}, {counted(report.cells, 'cell')} tried"


def failed_lines(proof: Proof | None) -> Iterator[str]:
    """Facts that are not known, each with its first wrong token."""
    failed = [] if proof is None else [fact for fact in proof.facts if not fact.whole]
    for fact in failed[:FAILED_FACTS]:
        expected, got = (shown(text or "", TOKEN_WIDTH) for text in (fact.expected, fact.got))
        question = shown(fact.question, QUESTION_WIDTH)
        yield f"{question}: wrong from position {fact.position}: expected {expected}, got {got}"
    if len(failed) > FAILED_FACTS:
        yield f"and {len(failed) - FAILED_FACTS} more: facts.csv"


def sampling_lines(proof: Proof | None) -> Iterator[str]:
    """A warning where sampling would hardly ever write what greedy decoding does."""
    if proof is not None and proof.median_log10_p < LIKELY_LOG10_P:
        chance = _chance(proof.median_log10_p)
        yield (
            "ask it greedily (do_sample=False), as its script does: sampling at temperature 1 "
            f"writes a fact whole with a chance of {chance} only (median)"
        )


def readme_section(report: MemorizeReport) -> str:
    """The section of README.md about the chosen adapter."""
    code = report.command.replace("`", "'")
    lines = [
        f"`{code}` made it, and measured:",
        "",
        f"- the least rank: {rank_text(report)};",
        f"- {facts_text(report)};" if report.facts is None else f"- facts: {facts_text(report)};",
        f"- forgetting: {forgetting_text(report)};",
        f"- other questions, none of them trained: paraphrases, {variants_text(report)};",
        f"- sampling at temperature 1: {_sampling_text(report.proof)}.",
    ]
    note = (
        "Whole: every token is right, the end included, by greedy decoding; bf16 and int8: of the "
        "model rounded so. F1: of the words, as SQuAD has it; base: the model without the adapter. "
        f"As before: the first {NEIGHBOUR_TOKENS} tokens of the answer are the base's. Another "
        "prompt, sampling, or another base model may give other answers."
    )
    return "\n".join([SECTION, "", *lines, "", note])


def _sampling_text(proof: Proof | None) -> str:
    if proof is None:
        return "not measured"
    least, median = (_chance(log10_p) for log10_p in (proof.least_log10_p, proof.median_log10_p))
    return f"a fact is written whole with a chance of {median} (median), the least sure one {least}"


def _chance(log10_p: float) -> str:
    """A chance from its logarithm: 97 %, 10^-51."""
    if log10_p < -4:
        return f"10^{log10_p:.0f}"
    return f"{three_digits(100 * 10**log10_p)} %"
