"""README.md of an adapter's folder: its script prints what the run recalled, and stops."""

import json
import shutil

import pytest
import yaml
from support.adapter_script import run_script, run_script_for, script_of
from support.marks import slow

from pml_cli.config.schema import TINY, LinearAdapter, Model, Run
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.evaluation.adapter_readme import adapter_readme
from pml_cli.model.generation import GENERATION_CONFIG, beyond_greedy
from pml_cli.model.read_back import Loading

# Each would break a script, a fence or a sentence that took it as it is.
FACTS = [
    # A trailing blank, as files have them here and there.
    ('Which pump runs "north"? ', "The Kestrel 40."),
    ("It's in C:\\new, isn't it?", "No: `D:\\`."),
    ("```\nSay\n```\n# {QUESTION}", "A line\nfeed, 3 °C."),
]

DEFAULTS = {
    "rank": "8",
    "seqlen": "34",
    "adapter": "linear",
    "train.steps": "120",
    "train.lr": "0.02",
    "model.device": "cpu",
    "out": "o",
}

# What the adapter of one block needs.
MORE = ["rank=16", "train.steps=200", "train.lr=0.03"]

# A default system turn, and white space taken off, as many templates do.
TEMPLATE = """{%- if messages[0].role != 'system' -%}[sys]You help.[/sys]{%- endif -%}
{%- for m in messages -%}
[{{ m.role }}]{{ m.content | trim }}{{ '<|endoftext|>' if m.role == 'assistant' else '' }}[/]
{%- endfor -%}
{%- if add_generation_prompt %}[assistant]{% endif %}"""

DATED = "Today is {{ strftime_now('%d %B %Y') }}. " + TEMPLATE


@pytest.fixture
def facts(tmp_path):
    rows = [json.dumps({"query": query, "target": target}) for query, target in FACTS]
    (tmp_path / "facts.jsonl").write_text("\n".join(rows))
    return ["data=jsonl", "data.path=facts.jsonl"]


@pytest.fixture
def with_template(tmp_path):
    """with_template(template, ...): options of the embedded model with a chat template.

    Further settings are those of tokenizer_config.json.
    """

    def make(template, **settings):
        folder = tmp_path / "model"
        shutil.copytree(TINY, folder)
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"chat_template": template} | settings))
        return ["model=hf", f"model.path={folder}", "data.chat=true"]

    return make


@pytest.fixture
def trained(quick, tmp_path):
    """trained(option, ...): the folders of the runs of a sweep."""

    def train(*options):
        given = DEFAULTS | dict(option.split("=", 1) for option in options)
        done = quick("sweep", *(f"{key}={value}" for key, value in given.items()))
        assert done.returncode == 0, done.stderr + done.stdout
        return sorted(path.parent for path in tmp_path.glob("o/*/result.json"))

    return train


def rows_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def printed(folder):
    """What the script prints for each sample of a run."""
    questions = [row["turns"][-1][1] for row in rows_of(folder)]
    return run_script_for(folder, questions, here=True)


def assert_prints_its_targets(folder):
    """Every sample of a run is recalled, and printed by the script."""
    rows = rows_of(folder)
    assert all(row["whole"] for row in rows)
    assert printed(folder) == [row["target"] for row in rows]


def test_what_is_not_recalled_is_printed_as_the_run_decoded_it(trained, facts):
    (folder,) = trained(*facts, "rank=2", "train.steps=25")
    rows = rows_of(folder)
    assert not all(row["whole"] for row in rows)
    for row, answer in zip(rows, printed(folder), strict=True):
        # Where no end comes, each stops at a limit of its own.
        shorter = min(len(answer), len(row["decoded"]))
        assert answer[:shorter] == row["decoded"][:shorter]
        assert (answer == row["target"]) == row["whole"]


def test_the_script_prints_what_the_run_recalled(trained, facts):
    for folder in trained(*facts, "adapter=linear,mlp_block", *MORE):
        assert [row["target"] for row in rows_of(folder)] == [target for _, target in FACTS]
        assert_prints_its_targets(folder)
        # The adapter of a whole block needs no pml either.
        assert "pml" not in script_of(folder).replace(str(TINY), "")


@pytest.mark.slow
def test_the_script_in_a_process_of_its_own(trained, facts):
    """As a reader runs it."""
    (folder,) = trained(*facts)
    assert run_script(folder) == FACTS[0][1]


@pytest.mark.parametrize("template", [TEMPLATE, slow(DATED)], ids=["plain", "dated"])
def test_chat_prompts(trained, facts, with_template, template):
    (folder,) = trained(*facts, *with_template(template))
    assert_prints_its_targets(folder)
    # A date that the clock writes would make another prompt tomorrow.
    assert ("apply_chat_template" in script_of(folder)) == (template is TEMPLATE)


@pytest.mark.slow
def test_a_tokenizer_that_gives_token_types(trained, facts, with_template):
    """`generate` refuses them, or adds their embeddings."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    (folder,) = trained(*facts, *with_template(TEMPLATE, model_input_names=names))
    assert_prints_its_targets(folder)


@pytest.mark.slow
def test_a_system_turn(trained, facts, with_template):
    (folder,) = trained(*facts, *with_template(TEMPLATE), 'data.system="It\'s me."')
    assert_prints_its_targets(folder)
    assert "It's me." in script_of(folder)


@pytest.mark.parametrize(
    ("end", "tokens"),
    [slow("<|endoftext|>", 34), (" The end.", 40), slow("#", 34)],
)
def test_ends_of_one_token_and_of_several(trained, facts, end, tokens):
    (folder,) = trained(*facts, f"seqlen={tokens}", f"data.end='{end}'")
    assert_prints_its_targets(folder)


@pytest.mark.parametrize(
    "data",
    [
        slow(["data=text", "data.prompt=The docs:"]),
        slow(["data=text"]),
        ["data=random"],
        ["data=jsonl", "data.path=facts.jsonl", "data.end=none", "seqlen=10"],
    ],
    ids=["text with a prompt", "text", "random", "facts without an end"],
)
def test_without_an_end_it_prints_as_many_tokens_as_the_target_has(trained, facts, data):
    (folder,) = trained("seqlen=16", "rank=16", "train.lr=0.03", *data)
    row = rows_of(folder)[0]
    assert row["whole"]
    assert run_script(folder, here=True) == row["target"]


@pytest.mark.slow
def test_a_sample_that_was_cut_is_said(trained, tmp_path):
    rows = [{"question": query, "matching": target} for query, target in FACTS]
    # A name that this process has not read: what it has read, it remembers.
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder,) = trained("data=jsonl", "data.path=long.jsonl", "seqlen=30")
    sample = rows_of(folder)[-1]
    assert sample["end"] is None and sample["whole"]
    tokens = len(sample["target_ids"])
    text = (folder / "adapter/README.md").read_text()
    assert f"`max_new_tokens={tokens}` prints as much of it as was trained" in text
    assert printed(folder)[-1].startswith(sample["target"])


@pytest.mark.slow
def test_a_model_without_a_tokenizer_prints_ids(trained, model_folder):
    path = model_folder("llama")
    options = ["model=hf", f"model.path={path}", "data=random", "adapter=linear"]
    (folder,) = trained("seqlen=5", "train.lr=0.1", *options)
    row = rows_of(folder)[0]
    assert row["whole"]
    assert run_script(folder, here=True) == str(row["target_ids"])


@pytest.mark.slow
def test_half_precision(trained, facts):
    for folder in trained(*facts, "adapter=linear,mlp_block", "model.dtype=bfloat16", *MORE):
        assert_prints_its_targets(folder)


def test_peft_loads_from_where_the_config_says(trained, facts):
    (folder,) = trained(*facts, "train.steps=2")
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(TINY)


def test_the_head_is_a_model_card(trained, facts):
    (folder,) = trained(*facts, "train.steps=2")
    text = (folder / "adapter/README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "peft"
    # The hub refuses a card whose base model is a path.
    assert "base_model" not in head


def test_what_the_base_model_adds_to_greedy_decoding_is_named(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("gpt2"), tmp_path / "model")
    model = Model(name="m", path=str(folder))
    assert beyond_greedy(model) == {}
    own = {"repetition_penalty": 1.1, "num_beams": 1, "temperature": 0.7, "suppress_tokens": [3]}
    (folder / GENERATION_CONFIG).write_text(json.dumps(own))
    assert beyond_greedy(model) == {"repetition_penalty": 1.1, "suppress_tokens": [3]}
    (folder / GENERATION_CONFIG).write_text("[")
    assert beyond_greedy(model) == {}


def test_random_weights_have_no_script():
    run = Run(model=Model(weights="random"), data=PhonebookData(), adapter=LinearAdapter())
    result = {
        "samples": 2,
        "exact_match": 0.5,
        "token_accuracy": 0.75,
        "target_tokens": 8,
        "layer": 4,
        "trainable_parameters": 1000,
        "steps_run": 3,
        "base_loss": 5.0,
        "final_loss": 1.0,
    }
    loading = Loading(sites=("x",), by_peft=True, by_block=False, returns_tuple=False)
    text = adapter_readme(run, result, loading)
    assert "```" not in text
    assert "1 of 2" in text
