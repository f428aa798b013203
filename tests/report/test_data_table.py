"""What is said of the facts of a sweep, through the command line."""

import json

import pytest
from support.marks import slow

from pml_cli.config.schema import LinearAdapter, Run, Train
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.launch.packing import check
from pml_cli.report.tables.data import rank_warnings, step_warnings
from pml_cli.report.tables.samples import QUESTION_WIDTH
from tests.support.tokenizers import THINKING, byte_level, lower_case, tokenizer_folder

FACTS = [
    ("Who wrote [bold]it[/bold]?", "Ada"),
    ("Where?", "In London"),
    ("Who wrote [bold]it[/bold]?", "Bob"),
    ("When?", 1843),
    ("Where?", "In London"),
]


@pytest.fixture
def facts_file(tmp_path):
    rows = [{"prompt": prompt, "completion": target} for prompt, target in FACTS]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(rows))
    return path


EXCLUSIVE = (
    "data=jsonl:facts: 1 prompt with targets that exclude each other, so not every sample can be "
    "recalled; first: 'Who wrote [bold]it[/bold]?' has 'Ada' and 'Bob'"
)
COPIED = (
    "data=jsonl:facts: of 5 samples, 1 duplicate; each copy counts in the scores; first: 'Where?'"
)
NUMBERS = "data=jsonl:facts: completion is no text: the target is what the file shows (1 of 5)"


def test_the_dry_run_says_how_much_there_is(quick, facts_file):
    done = quick("sweep", "data=jsonl", f"data.path={facts_file}", "seqlen=10,all", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (size,) = [line for line in lines if line.startswith("jsonl:facts: ")]
    total = int(size.split(", ")[1].split()[0])
    assert size.startswith(
        f"jsonl:facts: 5 samples of prompt/completion, {total} target tokens (ends included), "
        "longest prompt "
    )
    assert size.endswith(f"; seqlen=10 takes 2, {total} takes 5")
    for line in (EXCLUSIVE, COPIED, NUMBERS):
        assert lines.count(line) == 1

    # Of those in use.
    done = quick("sweep", "data=jsonl", f"data.path={facts_file}", "data.samples=2", "--dry-run")
    assert EXCLUSIVE not in done.stdout
    assert COPIED not in done.stdout


@pytest.mark.slow
def test_sizes_of_other_sources_and_of_several_models(quick):
    done = quick("sweep", "data=text,random,phonebook", "seqlen=40", "data.seed=0,1", "--dry-run")
    sizes = [line for line in done.stdout.splitlines() if "target tokens" in line]
    text, phonebook = sizes
    assert text.startswith("text: ")
    assert text.endswith(" target tokens")
    assert phonebook.startswith("phonebook: ")
    assert phonebook.endswith("; seqlen=40 takes 3")


@pytest.mark.parametrize("command", ["sweep", "probe", slow("memft")])
def test_repeats_are_said_before_the_training(quick, facts_file, command):
    losses = ["loss=sft,memft_ot"] if command == "memft" else []
    data = ["data=jsonl", f"data.path={facts_file}", "seqlen=all", "rank=2", "train.steps=2"]
    done = quick(command, *data, *losses)
    assert done.returncode == 0, done.stderr
    for line in (EXCLUSIVE, COPIED, NUMBERS):
        assert done.stdout.count(line) == 1


def test_the_prompt_and_what_cannot_be_printed_are_said(quick, tmp_path, facts_file):
    model = tokenizer_folder(tmp_path / "model", lower_case(), THINKING)
    options = [
        "model=hf",
        f"model.path={model.path}",
        "model.weights=random",
        "data=jsonl",
        f"data.path={facts_file}",
    ]
    options += ["data.chat=true", "data.system=Be brief.", "data.thinking=false", "seqlen=all"]
    done = quick("sweep", *options, "--dry-run")
    assert done.returncode == 0, done.stderr
    prompt = (
        r"<|turn|>system\nbe brief.<|turn_end|>\n"
        r"<|turn|>user\nwho wrote [bold]it[/bold]?<|turn_end|>\n"
        r"<|turn|>assistant\n<think>\n\n</think>\n\n"
    )
    lines = done.stdout.splitlines()
    assert f"  first prompt '{prompt}', target 'ada<|turn_end|>'" in lines
    assert (
        "data=jsonl:facts: 4 targets cannot be reproduced exactly: the tokenizer of model=model "
        "decodes them to another text; first: 'Ada' becomes 'ada'"
    ) in lines
    assert "when tokenised in one" not in done.stdout


def test_a_seam_that_a_tokenizer_would_merge_is_said(quick, tmp_path):
    model = tokenizer_folder(tmp_path / "model", byte_level())
    path = tmp_path / "facts.jsonl"
    facts = [("Which pum", "p is it"), ("Where?\n", "In Bremen")]
    path.write_text("\n".join(json.dumps({"query": q, "target": t}) for q, t in facts))
    options = [
        "model=hf",
        f"model.path={model.path}",
        "model.weights=random",
        "data=jsonl",
        f"data.path={path}",
    ]
    done = quick("sweep", *options, "data.separator=", "seqlen=all", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "  in 1 of 2 samples prompt and target have other tokens when" in done.stdout
    assert "  first prompt 'Which pum', target 'p is it<|end|>'" in done.stdout.splitlines()


def test_texts_of_seeds_that_overlap_are_said(quick):
    """The embedded text has 14,000 tokens: two of 2,048 find room, twelve do not."""
    sweep = ("sweep", "data=text", "seqlen=2048", "--dry-run")
    crowded = quick(*sweep, "data.seed=range(0,12)")
    assert crowded.returncode == 0, crowded.stderr
    assert "of their text (and " in crowded.stdout + crowded.stderr
    apart = quick(*sweep, "data.seed=0,1")
    assert apart.returncode == 0, apart.stderr
    assert "of their text" not in apart.stdout + apart.stderr


def test_minibatches_that_leave_samples_out_are_said():
    """Three steps of two: four of ten facts are never trained."""

    def cell(**train):
        return Run(seqlen=110, data=PhonebookData(), train=Train(**train))

    few = [cell(steps=3, batch=2), cell(steps=3, batch=2, lr=0.1)]
    (line,) = step_warnings(check([*few, cell(steps=5, batch=2), cell(steps=1)]))
    assert line.startswith("train.steps=3: too few for all of the 10 samples, of which ")
    assert "train.batch=2 takes 5 steps" in line
    assert not step_warnings(check([cell(epochs=1, steps=1, batch=2)]))


def test_ranks_beyond_the_widths_are_said():
    cells = check([Run(rank=rank, seqlen=8) for rank in (128, 129, 4096)])
    (line,) = rank_warnings(cells)
    assert line.startswith("rank=129,4096: the update of adapter=mlp_block on model=tiny has rank")
    assert "at most 128" in line
    # Of several matrices the widest counts.
    linear = LinearAdapter(targets=["k_proj", "up_proj"])
    assert not rank_warnings(check([Run(rank=128, seqlen=8, adapter=linear)]))


def test_of_a_long_target_the_beginning_and_the_end_token_are_shown(quick, tmp_path):
    model = tokenizer_folder(tmp_path / "model", byte_level())
    path = tmp_path / "facts.jsonl"
    target = "In the corridor beside hall 3, behind the door that is always shut."
    path.write_text(json.dumps({"query": "Where?", "target": target}))
    done = quick(
        "sweep",
        "model=hf",
        f"model.path={model.path}",
        "model.weights=random",
        "data=jsonl",
        f"data.path={path}",
        "seqlen=all",
        "--dry-run",
    )
    assert done.returncode == 0, done.stderr
    room = QUESTION_WIDTH - len("...<|end|>")
    shown = f"target '{target[:room]}...<|end|>'"
    assert any(line.endswith(shown) for line in done.stdout.splitlines())


def test_a_text_of_one_token_has_one_token(tmp_path, quick):
    (tmp_path / "one.txt").write_text("A")
    shown = quick("sweep", "data=text", "data.path=one.txt", "seqlen=all", "rank=1", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "text:one: 1 target token\n" in shown.stdout
