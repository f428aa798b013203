"""Which samples are not recalled: named with their first wrong token, few and on safe lines."""

import pandas as pd

from pml_cli.report.tables.samples import best_run, failure_lines, probe_lines, sweep_lines
from pml_cli.results.folder import RunFolder
from pml_cli.results.samples import write_samples

ERROR = {"position": 3, "expected": " 1987", "got": " 1978", "p": 0.3125}


def row(sample, error=None, **changes):
    """A row of samples.jsonl; recalled where there is no error."""
    fields = {
        "sample": sample,
        "turns": [["user", f"When was number {sample} built?"]],
        "prompt": "<|begin|>...",
        "prompt_ids": [0],
        "target": "In June 1987",
        "target_ids": [5, 6, 7, 8, 0],
        "decoded": "In June 1978",
        "decoded_ids": [5, 6, 7, 9, 0],
        "whole": error is None,
        "first_error": error,
    }
    return fields | changes


def test_a_failed_sample_is_named_with_its_first_wrong_token():
    assert failure_lines([row(0), row(7, ERROR)], 5) == [
        "sample 7 'When was number 7 built?': wrong from position 3: "
        "expected ' 1987' (p 0.312), got ' 1978'",
        "    wrote 'In June 1978'",
    ]


def test_no_more_than_a_few_are_named():
    lines = failure_lines([row(i, ERROR) for i in range(10)], 3)
    assert [line for line in lines if line.startswith("sample")][-1].startswith("sample 2 ")
    assert lines[-1] == "and 7 more"


def test_what_was_not_decoded_is_left_out():
    rows = [row(0), row(1, ERROR, decoded=None, decoded_ids=None)]
    assert len(failure_lines(rows, 5)) == 1


def test_a_stream_has_no_question():
    (line,) = failure_lines([row(0, ERROR, turns=[])], 5)
    assert line == "wrong from position 3: expected ' 1987' (p 0.312), got ' 1978'"


def test_without_a_tokenizer_tokens_are_ids():
    error = ERROR | {"expected": None, "got": None}
    texts = dict.fromkeys(("prompt", "target", "decoded"))
    rows = [row(0), row(1, error, turns=[], **texts)]
    assert failure_lines(rows, 5) == [
        "sample 1: wrong from position 3: expected id 8 (p 0.312), got id 9"
    ]


def test_texts_of_users_cannot_harm_a_terminal():
    """Escape sequences, markup of rich, line ends, marks that turn the direction; long ones."""
    question = "[bold]\x1b[2J\r\n\u202e" + "long " * 100
    error = ERROR | {"expected": "\x07", "got": "[/]"}
    lines = failure_lines([row(0), row(1, error, turns=[["user", question]])], 5)
    text = "".join(lines)
    assert text.isprintable()
    assert r"'[bold]\x1b[2J\r\n\u202elong long" in text and "...'" in text
    assert r"expected '\x07' (p 0.312), got '[/]'" in text
    assert max(map(len, lines)) < 200


def run(folder, rank, tokens, exact_match, samples=2):
    return {
        "id": folder.id,
        "folder": str(folder.path),
        "rank": rank,
        "target_tokens": tokens,
        "exact_match": exact_match,
        "token_accuracy": exact_match,
        "samples": samples,
    }


def test_a_sweep_names_the_samples_of_the_best_run_with_the_most_of_them(tmp_path):
    folders = [RunFolder(tmp_path, name) for name in "abcde"]
    runs = pd.DataFrame(
        [
            run(folders[0], 2, 90, 0.25),
            run(folders[1], 8, 90, 0.5),
            # As good, and larger; shorter, and recalled; one text.
            run(folders[2], 16, 90, 0.5),
            run(folders[3], 8, 30, 1.0),
            run(folders[4], 8, 500, 0.0, samples=1),
        ]
    )
    assert best_run(runs)["id"] == "b"
    write_samples(folders[1], [row(0), row(1, ERROR)])
    heading, *lines, ask = sweep_lines(runs)
    assert heading.startswith("1 of 2 samples recalled by the best of the longest runs")
    assert "(rank 8, l 90)" in heading and heading.endswith("b/samples.jsonl")
    assert lines == failure_lines([row(0), row(1, ERROR)], 3)
    assert ask == f"ask it: pml ask {folders[1].path} 'When was number 0 built?'"

    write_samples(folders[1], [row(0), row(1)])
    heading, *_ = sweep_lines(runs)
    assert heading.startswith("2 of 2 samples recalled by")


def test_a_probe_says_how_to_ask_its_adapter(tmp_path):
    folder = RunFolder(tmp_path, "a")
    write_samples(folder, [row(0, turns=[["user", "two\nlines"]])])
    assert probe_lines(folder)[-1] == f"ask it:     pml ask {folder.path} QUESTION"
    # A stream is not asked.
    write_samples(folder, [row(0, turns=[])])
    assert probe_lines(folder) == [f"samples:    {folder.samples}"]


def test_runs_without_samples_are_passed_over(tmp_path):
    folder = RunFolder(tmp_path, "a")
    assert sweep_lines(pd.DataFrame([run(folder, 2, 90, 0.25)])) == []
    assert sweep_lines(pd.DataFrame([run(folder, 2, 90, 0.25, samples=1)])) == []
    assert sweep_lines(pd.DataFrame([{"id": "a", "rank": 2}])) == []
    assert probe_lines(folder) == []
