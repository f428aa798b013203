"""What fuzzing has found, made small; each kind is mended where it comes from."""

from __future__ import annotations

from collections.abc import Iterator

from catalogue.case import Case
from catalogue.damage import put, with_value

DOOR = "found by fuzzing"

LONG = "k" * 100_000
COLUMNS = [f"k{n}" for n in range(5000)]
SWEEPS = {
    "lists in a list of numbers": "train: {curriculum: [[[1]]]}\n",
    "a mapping in a list of numbers": "adapter: linear\nadapter.layers: [[{a: 1}]]\n",
    "a list in a list of names": "adapter: linear\nadapter.targets: [[[q_proj]]]\n",
    "a number in place of a list, by an interpolation": "train: {curriculum: '${rank}'}\n",
    "a number in place of a mapping, by an interpolation": "model.architecture: '${rank}'\n",
    "a mapping without a name in place of a number": "train.lr: {'': null}\n",
    "a page in place of a number": f"rank: [{{{', '.join(f'k{n}: {n}' for n in range(3000))}}}]\n",
}
LISTS = (
    *("train.curriculum=[[1]]", "train.curriculum=[{a:1}]"),
    "adapter.layers=[[1]]",
    "adapter.targets=[[x]]",
)
FACTS = {
    "a carriage return before the header": b"\rx",
    "carriage returns for line ends": b"a,b\r1,2\r",
    "a header of 200,000 letters": b"k" * 200_000 + b"\n1\n",
    "a key of 100,000 letters": f"{LONG},b\n1,2\n".encode(),
    "5,000 columns": ",".join(f"k{n}" for n in range(5000)).encode()
    + b"\n"
    + b"1," * 4999
    + b"1\n",
}
# A message quotes an override; it is as long as the user made it.
LONG_OVERRIDES = {
    "an override with a key of 100,000 letters": f"{LONG}=1",
    "no value, of 100,000 letters": LONG,
    "a sign before 100,000 letters": f"+{LONG}=1",
    "a key of 3,000 brackets": "range(1," * 3000,
    "a key of 30 brackets and no grammar": "range(1," * 30 + "=9)",
    "a value of 100,000 letters": f"rank={LONG}",
    "an interval of 100,000 letters": f"rank=interval(1,{'9' * 100_000})",
}
DEEP = '{"x": [' * 400 + '"y"' + "]}" * 400
DEEP_FACTS = {
    "variants nested deep": '{"question": "a", "answer": "b", "variants": ' + DEEP + "}",
    "neighbours nested deep": '{"question": "a", "answer": "b", "neighbours": ' + DEEP + "}",
    "a target nested deep": '{"question": "a", "answer": ' + DEEP + "}",
    "an array nested deep": '[{"question": "a", "answer": "b", "other": ' + DEEP + "}]",
    "an object over lines, nested deep": '{"question": "a",\n"answer": ' + DEEP + "}",
}
# The first half of an emoji that was cut: no UTF-8 stands for it.
HALF_ESCAPE = "\\ud83d"
HALF = "\ud83d"
# Fields of result.json that are read, and were not declared.
UNDECLARED = (
    *("base_token_accuracy", "base_exact_match", "base_log10_p", "effective_parameters"),
    *("converged", "expected_gain", "edit_distance", "violations", "stubborn_tokens"),
)


def cases() -> Iterator[Case]:
    """All of them."""
    for name, text in SWEEPS.items():
        yield _case(name, ("sweep", "-f", "s.yaml", "--dry-run"), put("s.yaml", text))
    for override in LISTS:
        argv = ("sweep", override, "adapter=linear", "--dry-run")
        yield _case(override, argv, says=override.partition("=")[0])
    for name, override in LONG_OVERRIDES.items():
        yield _case(name, ("sweep", override, "--dry-run"))
    for argv in (("fit", f"{LONG}=1"), ("predict", "--target", LONG), ("fit", "--by", LONG)):
        yield _case(f"100,000 letters: {' '.join(argv)[:20]}", argv)
    yield _case("an override of two lines", ("sweep", "\n\n", "--dry-run"), says="key=value")
    for field in UNDECLARED:
        for value in ("word", [1], 10**400):
            change = with_value("runs/*/result.json", (field,), value)
            argv = ("fit", "runs", "figures=false", "draws=0")
            title = f"{field} is {str(value)[:9]}"
            yield _case(title, argv, change, says=field, base="swept")
    yield from _half_characters()
    for name, content in DEEP_FACTS.items():
        argv = ("sweep", "data=jsonl", "data.path=f.jsonl", "seqlen=all", "--dry-run")
        yield _case(name, argv, put("f.jsonl", content), says="f.jsonl")
    for name, content in FACTS.items():
        argv = ("sweep", "data=jsonl", "data.path=f.csv", "seqlen=all", "--dry-run")
        yield _case(name, argv, put("f.csv", content), says="f.csv")


def _half_characters() -> Iterator[Case]:
    for field in ("above_threshold", "loss", "a field of a newer version"):
        change = with_value("runs/*/result.json", (field,), HALF)
        argv = ("fit", "runs", "figures=false", "draws=0")
        yield _case(f"{field} is half a character", argv, change, says="d83d", base="swept")
    for text in (f'rank: ["{HALF_ESCAPE}"]\n', f'"{HALF_ESCAPE}": 1\n'):
        argv = ("sweep", "-f", "s.yaml", "--dry-run")
        yield _case(f"a sweep file of {text}", argv, put("s.yaml", text), says="d83d")


def _case(name, argv, change=None, *, says="", base="", codes=(2,)) -> Case:
    return Case(door=DOOR, name=name, argv=argv, change=change, says=says, base=base, codes=codes)
