"""Chat templates in the way of families: what the prompt is, and what ends the answer."""

import datetime
from unittest import mock

import pytest
import transformers

from pml_cli.config.schema import Run
from pml_cli.data.prompt import prompt_of
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources.random import RandomData
from pml_cli.errors import UserError
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.results.run_id import run_id
from tests.support.facts import fact_samples
from tests.support.tokenizers import (
    BEGIN,
    CAPITALS,
    CHATML_DEFAULT,
    DATED,
    END,
    FORGETFUL,
    INSTRUCT,
    NO_SYSTEM,
    PARTS,
    THINKING,
    TURN_END,
    byte_level,
    prefixed,
    tokenizer_folder,
    with_begin,
)

QUESTION = "Who built it?"
TURNS = (("user", QUESTION),)

TEMPLATES = {
    "default system turn": (CHATML_DEFAULT, TURN_END),
    "thinking": (THINKING, TURN_END),
    "no system turn": (NO_SYSTEM, TURN_END),
    "dated": (DATED, TURN_END),
    "no generation prompt": (INSTRUCT, END),
    "no end of turn": (FORGETFUL, END),
}


@pytest.fixture(params=TEMPLATES)
def chat(request, tmp_path):
    """A model with each template, and what ends its answers."""
    template, end = TEMPLATES[request.param]
    return tokenizer_folder(tmp_path, with_begin(byte_level()), template), end


def chat_ids(model, messages, **options):
    """What a script gets that was run on the date that pml gives."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2025, 1, 1)

    script = transformers.AutoTokenizer.from_pretrained(model.path)
    with mock.patch("transformers.utils.chat_template_utils.datetime", Clock):
        chat = script.apply_chat_template(messages, add_generation_prompt=True, **options)
    return chat["input_ids"]


def test_the_prompt_is_what_a_script_gets_and_the_answer_ends_its_turn(chat, tmp_path):
    model, end = chat
    (sample,), data = fact_samples(model, [(QUESTION, "Ada.")], tmp_path, chat=True)
    assert list(sample.prompt) == chat_ids(model, [{"role": "user", "content": QUESTION}])

    tokenizer = open_tokenizer(model)
    assert (data.end, data.separator, data.system) == (end, "", None)
    assert tokenizer.decode(sample.target) == f"Ada.{end}"
    assert tokenizer.decode(sample.target, skip_special=True) == "Ada."
    # Never begin-of-text twice.
    assert sample.prompt.count(tokenizer.end_ids(BEGIN)[0]) <= 1


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize(
    ("template", "takes"),
    [
        (CAPITALS, True),
        (CHATML_DEFAULT, True),
        (THINKING, True),
        (DATED, True),
        (NO_SYSTEM, False),
        (INSTRUCT, False),
    ],
)
def test_the_system_turn_is_the_one_that_was_asked_for(template, takes, system, tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), template)
    options = {"chat": True, "system": system}
    if not takes:
        with pytest.raises(UserError, match=r"^data\.system=.* refuses a system turn .* null$"):
            fact_samples(model, [(QUESTION, "Ada.")], tmp_path, **options)
        return

    (sample,), data = fact_samples(model, [(QUESTION, "Ada.")], tmp_path, **options)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": QUESTION}]
    assert list(sample.prompt) == chat_ids(model, messages)
    assert data.system == system


def test_a_template_that_leaves_the_system_turn_out_says_so(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), FORGETFUL)
    with pytest.raises(UserError, match=r"^data\.system='Be brief\.': .* ignores system messages"):
        fact_samples(model, [(QUESTION, "Ada.")], tmp_path, chat=True, system="Be brief.")
    # An empty one is left out by right.
    fact_samples(model, [(QUESTION, "Ada.")], tmp_path, chat=True, system="")


def test_a_system_turn_that_is_given_takes_the_place_of_that_of_the_data(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), CHATML_DEFAULT)
    turns = (("system", "Of the data."), *TURNS)
    tokenizer = open_tokenizer(model)
    for system, expected in ((None, "Of the data."), ("Mine.", "Mine."), ("", "")):
        text = prompt_of(tokenizer, RandomData(chat=True, system=system), turns).text
        assert text.startswith(f"<|turn|>system\n{expected}<|turn_end|>\n<|turn|>user\n{QUESTION}")


@pytest.mark.parametrize("thinking", [None, True, False])
def test_the_answer_comes_after_the_empty_block_of_thinking(thinking, tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), THINKING)
    (sample,), data = fact_samples(
        model, [(QUESTION, "Ada.")], tmp_path, chat=True, thinking=thinking
    )
    prompt = open_tokenizer(model).decode(sample.prompt)
    block = "<think>\n\n</think>\n\n" if thinking is False else ""
    assert prompt.endswith(f"<|turn|>assistant\n{block}")
    assert data.thinking is thinking

    options = {} if thinking is None else {"enable_thinking": thinking}
    messages = [{"role": "user", "content": QUESTION}]
    assert list(sample.prompt) == chat_ids(model, messages, **options)


def test_thinking_is_refused_where_the_template_knows_none(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), CHATML_DEFAULT)
    for thinking in (True, False):
        with pytest.raises(
            UserError, match=r"^data\.thinking=(true|false): .* has no thinking mode"
        ):
            fact_samples(model, [(QUESTION, "a")], tmp_path, chat=True, thinking=thinking)


def test_templates_see_a_date_that_stands_still(tmp_path):
    model = tokenizer_folder(tmp_path / "dated", byte_level(), DATED)
    undated = tokenizer_folder(tmp_path / "plain", byte_level(), CHATML_DEFAULT)
    facts = [(QUESTION, "Ada.")]
    for date, written in ((None, "01 Jan 2025"), ("2024-02-29", "29 Feb 2024")):
        options = {"chat": True} | ({"date": date} if date else {})
        (sample,), data = fact_samples(model, facts, tmp_path, **options)
        prompt = open_tokenizer(model).decode(sample.prompt)
        assert f"Today Date: {written}\n" in prompt
        assert data.date == date or not date

        # Where the template writes none, it makes no other run.
        _, other = fact_samples(undated, facts, tmp_path, **options)
        assert other.date == "2025-01-01"


# What a template may ask of the clock; `-` leaves out a leading zero.
DATE_FORMATS = (
    "%-d %-m %-j %a %A %b %B %c %d %D %e %f %F %h %H %I %j %m %M %p %R %S %T %u %U %V %w %W %x %X "
    "%y %Y %Z %Od %_d %^b"
).split()


@pytest.mark.parametrize("code", [*DATE_FORMATS, "%Y-%m-%d", "%d %B, %Y at %H:%M", "no date"])
def test_a_template_reads_the_date_in_any_format(code, tmp_path):
    """A line feed at its beginning stays, too."""
    template = f"\n[{{{{ strftime_now('{code}') }}}}]{{{{ strftime_now('%Y')[:2] | int + 1 }}}}"
    template += "{{ messages[0].content }}"
    model = tokenizer_folder(tmp_path, byte_level(), template)
    text = prompt_of(open_tokenizer(model), RandomData(chat=True, date="2024-02-09"), TURNS).text
    assert text == f"\n[{datetime.datetime(2024, 2, 9):{code}}]21{QUESTION}"


def test_system_and_thinking_make_another_run_and_a_date_where_it_is_written(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), DATED)
    settings = [
        {},
        {"chat": True},
        {"chat": True, "system": ""},
        {"chat": True, "system": "Be brief."},
        {"chat": True, "date": "2024-02-29"},
    ]
    runs = [Run(model=model, data=RandomData(prompt="Hi", **more)) for more in settings]
    assert len({run_id(resolved_run(run)) for run in runs}) == len(runs)


def test_a_target_after_an_answer_without_generation_prompt_is_printed(tmp_path):
    """[/INST] and the answer, of a tokenizer that puts a blank before it."""
    model = tokenizer_folder(tmp_path, prefixed(), INSTRUCT)
    (sample,), _ = fact_samples(model, [(QUESTION, "Ada.")], tmp_path, chat=True)
    script = transformers.AutoTokenizer.from_pretrained(model.path)
    whole = script.decode((*sample.prompt, *sample.target))
    assert whole.endswith(f"[INST] {QUESTION} [/INST] Ada.{END}")
    assert script.decode(sample.target, skip_special_tokens=True) == "Ada."


def test_several_turns_need_a_template(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), CHATML_DEFAULT)
    turns = (*TURNS, ("assistant", "Ada."), ("user", "When?"))
    tokenizer = open_tokenizer(model)
    with pytest.raises(UserError, match=r"user, assistant, user\) needs? data\.chat=true"):
        prompt_of(tokenizer, RandomData(), turns)
    text = prompt_of(tokenizer, RandomData(chat=True), turns).text
    assert text.endswith("<|turn|>user\nWhen?<|turn_end|>\n<|turn|>assistant\n")


@pytest.mark.parametrize(
    "template",
    ["{{ messages[5]['content'] }}", "{% for", "{{ 1 / 0 }}", "{{ raise_exception('a\nb') }}"],
)
def test_a_template_that_fails_is_one_line(template, tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), template)
    with pytest.raises(UserError, match=r"^data\..*: the chat template of model=small") as error:
        fact_samples(model, [(QUESTION, "a")], tmp_path, chat=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("template", ["{{ now() }}", "{% for", "{{ messages[9].content }}"])
def test_a_template_that_fails_is_one_line_whatever_is_set(template, tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), template)
    for setting in ({"thinking": False}, {"date": "2024-02-29"}, {"system": "a"}):
        with pytest.raises(UserError, match=r"^data\.(chat|system)=.*: the chat template of"):
            resolved_run(Run(model=model, data=RandomData(chat=True, **setting)))


@pytest.mark.parametrize(
    "template", [PARTS, "{{ 'Hello' }}", "{% for m in messages %}{% endfor %}"]
)
def test_a_template_that_leaves_the_question_out_is_refused(template, tmp_path):
    """Those of some multimodal models read no text that is not a part of a list."""
    model = tokenizer_folder(tmp_path, byte_level(), template)
    with pytest.raises(UserError, match=r"^data\.chat=true: .* ignores the user message; "):
        fact_samples(model, [(QUESTION, "Ada."), ("When?", "1987")], tmp_path, chat=True)


def test_a_prompt_of_no_tokens_is_refused(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), "{{ messages[0].content }}")
    with pytest.raises(UserError, match=r"^data\.chat=true: .* an empty prompt"):
        prompt_of(open_tokenizer(model), RandomData(chat=True), (("user", ""),))


def test_a_model_without_a_template_names_the_separator(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level())
    with pytest.raises(UserError, match=r"^data\.chat=true: .* no chat template; .*separator"):
        fact_samples(model, [(QUESTION, "a")], tmp_path, chat=True)


def test_of_several_templates_the_default_is_taken(tmp_path):
    for name in ("default", "tool_use"):
        templates = [{"name": name, "template": CHATML_DEFAULT}]
        model = tokenizer_folder(tmp_path / name, byte_level(), templates)
        if name == "default":
            (sample,), _ = fact_samples(model, [(QUESTION, "Ada.")], tmp_path, chat=True)
            text = open_tokenizer(model).decode(sample.prompt)
            assert text.endswith("<|turn|>assistant\n")
            continue
        with pytest.raises(UserError, match=r"^data\.chat=true: .* is unusable") as error:
            fact_samples(model, [(QUESTION, "Ada.")], tmp_path, chat=True)
        assert "\n" not in str(error.value)
