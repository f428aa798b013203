"""What an adapter is to remember: prompts and target tokens, cut to any length.

A source is opened once and cut to any length: a longer target always begins with the shorter one,
so lengths are prefixes of one sequence and one forward pass over the longest serves them all. Only
target tokens are scored; the prompt only conditions.

May import `config` and `model` (tokenizers and dimensions), neither torch nor the trainer.

    resolve.py          what automatic settings are for a model and its data
    whole.py            a file of facts or texts as a whole, for `pml memorize`
    lengths.py          seqlen=all and data.samples as a number of target tokens
    repeats.py          samples that occur twice, prompts with two targets
    prompt.py           the prompt of a sample, as text and as token ids
    seam.py             where prompt and target meet, and targets that cannot be printed
    source.py           Sample and Source: what every source gives
    sources/            one file a source: its settings, and how it is opened
    stream.py           settings of streams, and the prompt that they get on a sink
    windows.py          text in windows, less what shares tokens with a target
    generic_text.py     text of several kinds in generic/, to hold adapters down and measure harm
    running_text.py     a source of one long text, for text, mixed and hf
    random_tokens.py    the tokens that random sources draw from
    facts.py            a source of many short facts, for phonebook, rule and jsonl
    facts_file.py       the rows of a file: JSON lines, a JSON array, CSV, parquet
    fact_keys.py        from rows to facts: which keys hold prompt and target
    question_keys.py    which hold paraphrases, and questions whose answers must not change
    row_values.py       values of rows as text, and as messages show them
    text_file.py        UTF-8 files with their faults
    synthetic_facts.py  the phone book and the linear rule
    python_docs.py      the documentation inside Python, and which of it the tiny model has not seen
    opened.py           sources opened once a process, samples checked against the model's context
    curriculum.py       how many samples are in use in an epoch, and the number of steps
    cell.py             CellPlan: one run with its samples and steps
    row_packing.py      which sample lies where in packed rows, for the trainer and the planner
"""
