"""The text that the tiny model has not seen."""

import importlib
import re
from pathlib import Path

import pytest

from pml_cli.data import python_docs


@pytest.mark.parametrize("docstrings", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_held_out_text_shares_no_run_of_words_with_the_pretraining_text(docstrings, monkeypatch):
    """As benchmarks/pretrain_tiny.py builds it, checked independently: sets of 13-word runs."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    script = importlib.import_module("pretrain_tiny")
    topics = python_docs.python_topics()
    held_out = python_docs.held_out_text()
    documents = [text for name, text in topics.items() if not python_docs.is_held_out(name)]
    if docstrings:
        documents += script.docstrings()
    clean, dropped = script.decontaminate(documents, held_out)
    assert dropped > 0

    def word_runs(text):
        tokens = re.findall(r"\w+", text.lower())
        return {" ".join(tokens[i : i + 13]) for i in range(len(tokens) - 12)}

    secret = word_runs(held_out)
    assert len(secret) > 1000
    for document in clean:
        for paragraph in document.split("\n\n"):
            assert not word_runs(paragraph) & secret
    assert 0.05 < len(held_out) / sum(map(len, topics.values())) < 0.2
