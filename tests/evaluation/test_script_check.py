"""The script in an adapter's README.md is run for every fact, and judged by the targets."""

import pytest

from pml_cli.config.schema import Run
from pml_cli.data.opened import samples_of
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.evaluation.proof import MEASURED
from pml_cli.evaluation.script_check import check_script
from pml_cli.results.folder import RunFolder

FACTS = {"Which pump?": "The Kestrel.", 'Who said "no"?': "Ada\nand Piet.", "Where?": "In Skarv."}

SCRIPT = """
ANSWERS = {answers!r}


def answer(question):
    return ANSWERS[question]


print(answer({first!r}))
"""


@pytest.fixture
def run(tmp_path):
    rows = ["question,answer"]
    for question, answer in FACTS.items():
        quoted = question.replace('"', '""')
        rows.append(f'"{quoted}","{answer}"')
    (tmp_path / "facts.csv").write_text("\n".join(rows))
    data = JsonlData(path=str(tmp_path / "facts.csv"))
    return resolved_run(Run(data=data, seqlen=25))


@pytest.fixture
def check(run, tmp_path):
    """check(script): what is said of a README.md with this script."""
    folder = RunFolder(tmp_path, "run")
    folder.adapter.mkdir(parents=True)

    def of(script, seconds=60):
        readme = f"# An adapter\n\n````python\n{script}````\n\nThat was it.\n"
        (folder.adapter / "README.md").write_text(readme)
        return check_script(folder, run, samples_of(run), list(FACTS.values()), seconds)

    return of


def script(**changed):
    answers = FACTS | changed
    return SCRIPT.format(answers=answers, first=next(iter(FACTS)))


def test_every_answer_is_compared_with_its_target(check):
    proof = check(script())
    assert (proof.status, proof.asked, proof.whole) == (MEASURED, 3, 3)
    proof = check(script(**{"Where?": "In Skarv"}))
    assert (proof.asked, proof.whole) == (3, 2)


def test_a_script_that_fails_says_why(check):
    proof = check(f"import no_such_package\n{script()}")
    assert (proof.asked, proof.whole) == (0, 0)
    reason = "ModuleNotFoundError: No module named 'no_such_package'"
    assert proof.status == f"could not be run here: {reason}"


@pytest.mark.slow
def test_a_script_that_takes_too_long_counts_as_far_as_it_came(check):
    slow = script().replace("    return", "    if question == 'Where?': time.sleep(60)\n    return")
    proof = check(f"import time\n{slow}", seconds=2)
    assert proof.status == "stopped after 2 s"
    assert (proof.asked, proof.whole) == (2, 2)
    assert check(slow, seconds=0).status == "not run"
