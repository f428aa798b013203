"""The data sources, one file each: the settings class of `data=NAME` and how it is opened.

A new source is a file here, conf/data/NAME.yaml and a test. Help and shell completion import these
modules, so they import numpy and tokenizers only when a source is opened.

    random.py     uniform random tokens
    text.py       running text of a file, or the documentation inside Python
    mixed.py      running text with a share of random tokens
    phonebook.py  generated names and numbers
    rule.py       a linear rule with an unseen test split
    jsonl.py      the user's samples, one JSON object a line
    hf.py         a text column of a Hugging Face dataset
"""
