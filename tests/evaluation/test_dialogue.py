"""How a script asks for the samples of a run."""

import json

from support.tokenizers import byte_level, tokenizer_folder

from pml_cli.config.schema import ALL_TOKENS, Run
from pml_cli.data.opened import samples_of
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.evaluation.dialogue import SPARE_TOKENS, dialogue_of

CONTEXT = 512


def planned(folder, facts):
    """The samples of facts, and how they are asked for."""
    path = folder / "facts.jsonl"
    rows = [json.dumps({"query": query, "target": target}) for query, target in facts]
    path.write_text("\n".join(rows))
    model = tokenizer_folder(folder / "model", byte_level())
    run = resolved_run(Run(model=model, data=JsonlData(path=str(path)), seqlen=ALL_TOKENS))
    return samples_of(run), dialogue_of(run)


def test_no_target_is_cut_off_for_the_prompt_of_another(tmp_path):
    samples, dialogue = planned(tmp_path, [("x" * 400, "y"), ("Q", "z" * 300)])
    assert len(samples[0].prompt) > 300
    assert dialogue.max_new_tokens == len(samples[1].target) > CONTEXT - len(samples[0].prompt)


def test_questions_that_were_not_trained_on_have_tokens_to_spare(tmp_path):
    samples, dialogue = planned(tmp_path, [("Which?", "A word"), ("Who?", "Ada")])
    longest = max(len(sample.target) for sample in samples)
    assert dialogue.max_new_tokens == longest + SPARE_TOKENS
