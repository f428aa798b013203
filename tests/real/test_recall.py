"""What pml calls recalled is what transformers and PEFT print, to the end token."""

import json

import pytest
from support.adapter_script import run_script, run_script_for
from support.sweeps import pml

from real import plain


def samples_of(run):
    return [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]


def question_of(sample):
    ((_role, question),) = sample["turns"]
    return question


def result_of(run):
    return json.loads((run / "result.json").read_text("utf-8"))


def trained_with(runs, loss):
    """The run folder of a loss."""
    folders = [path.parent for path in runs.glob("*/result.json")]
    (run,) = [folder for folder in folders if result_of(folder)["loss"] == loss]
    return run


@pytest.fixture(scope="module")
def blocks(smollm2_folder, tmp_path_factory):
    """A run beside the MLP of one layer, of two facts without a chat template."""
    folder = tmp_path_factory.mktemp("blocks")
    facts = [("What is the part number of the left hinge?", "MV-2093-L")]
    facts += [("How long does the ferry to Skarv take?", "7 hours and 25 minutes.")]
    rows = "".join(f"{question},{answer}\n" for question, answer in facts)
    (folder / "facts.csv").write_text("question,answer\n" + rows, "utf-8")
    trained = pml(
        folder,
        "probe",
        "model=hf",
        f"model.path={smollm2_folder}",
        "model.name=smollm2",
        "model.device=cpu",
        "data=jsonl",
        "data.path=facts.csv",
        "seqlen=all",
        "rank=8",
        "train.lr=3e-2",
        "train.steps=80",
        "train.stop=recalled",
        "out=runs",
    )
    assert trained.returncode == 0, trained.stderr
    (result,) = (folder / "runs").glob("*/result.json")
    return result.parent


@pytest.mark.parametrize("loss", ["sft", "memft_margin"])
def test_transformers_and_peft_print_what_is_recalled(five_facts, smollm2_folder, loss):
    run = trained_with(five_facts, loss)
    samples = samples_of(run)
    assert [sample["whole"] for sample in samples] == [True] * 5
    result = result_of(run)
    assert result["exact_match"] == result["free_exact_match"] == 1

    tokenizer = plain.tokenizer_of(smollm2_folder)
    model = plain.load_adapted(smollm2_folder, run / "adapter")
    for sample in samples:
        prompt = plain.chat_ids(tokenizer, question_of(sample))
        assert sample["prompt_ids"] == prompt
        ids = plain.generate(model, prompt)
        assert ids == sample["target_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == sample["target"]


def test_the_script_of_the_adapter_prints_the_answers(five_facts):
    run = trained_with(five_facts, "memft_margin")
    samples = samples_of(run)
    questions = [question_of(sample) for sample in samples]
    assert run_script_for(run, questions) == [sample["target"] for sample in samples]


def test_beside_an_mlp_and_without_a_chat_template(blocks, smollm2_folder):
    tokenizer = plain.tokenizer_of(smollm2_folder)
    model = plain.load_adapted(smollm2_folder, blocks / "adapter")
    samples = samples_of(blocks)
    for sample in samples:
        assert sample["whole"]
        assert plain.answer(model, tokenizer, question_of(sample), chat=False) == sample["target"]
    assert run_script(blocks, question_of(samples[1])) == samples[1]["target"]


def test_pml_ask_answers_as_the_adapter_does(five_facts):
    run = trained_with(five_facts, "sft")
    sample = samples_of(run)[2]
    asked = pml(five_facts.parent, "ask", str(run), question_of(sample), "--json")
    assert asked.returncode == 0, asked.stderr
    (answer,) = json.loads(asked.stdout)["answers"]
    assert answer["text"] == sample["target"]
    assert answer["ended"]
