"""Measures of a trained adapter: recall, held-out gain, forgetting, robustness to deployment.

Each measure is a file whose `measure` takes a model, a bank of adapters and samples for each of
them, and returns a mapping of named numbers for each adapter.

    decoding.py       free-running greedy decoding
    recall_scores.py  sampling, prefixes and near-verbatim recall (without torch)
    beyond_greedy.py  sampling at other temperatures, recall after a wrong token
    held_out_gain.py  loss gained on held-out samples of the source
    forgetting.py     loss, and KL divergence from the base, on other text
    quantize.py       absmax rounding of weights
    conditions.py     the conditions of `pml lasting` by name (without torch)
    deployment.py     adapters rounded, merged and in bfloat16
    robustness.py     one run under every condition: the body of lasting.json
    own_text.py       what a base model writes by itself
    subject.py        a finished run that is to be measured
    adapters.py       the models and adapters of finished runs, loaded
    finished_runs.py  finished runs to be measured, and the file of what was measured
    lasting_runs.py   the runs that `pml lasting` measures
    forgetting_runs.py the runs that `pml forgetting` measures, and their harm
    samples.py        the rows of samples.jsonl
    peft_folder.py    LoRA adapters in PEFT's layout: where they are, what they say (without torch)
    peft_adapter.py   their weights, on the model
    adapter_measure.py what one adapter holds of some samples: the body of measure.json
    proof.py          what a run knows before it is handed over (without torch)
    proving.py        measures it
    other_questions.py paraphrases of the facts, and questions whose answers must not change
    batched_answers.py questions to that script, several in one call of generate
    script_check.py   the adapter's script, run as its reader would run it
    answers.py        token F1 of an answer
    asking.py         the prompts of a finished run, and what its adapter answers
    result.py         the body of result.json
    environment.py    the body of env.json
    dialogue.py       how plain transformers asks for a run's samples, tried out on its tokenizer
    adapter_script.py a script that does so
    adapter_readme.py README.md of an adapter's folder

May import: training, results, data, model, config, and the modules at the bottom.
"""
