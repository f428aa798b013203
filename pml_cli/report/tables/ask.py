"""Answers of an adapter: the text, and p of each token."""

from __future__ import annotations

from rich.text import Text

from pml_cli.evaluation.asking import Answer, AnswerToken, Question
from pml_cli.format import counted
from pml_cli.report.tables.samples import ANSWER_WIDTH, TOKEN_WIDTH, shown

# Tokens of an answer whose p is printed.
MAX_TOKENS = 100

# p above which nothing else can be chosen, and below which a token is hardly more than a guess.
CERTAIN = 0.5
UNSURE = 0.1


def question_line(question: Question) -> str:
    """A question above its answer."""
    return f"> {printable(question.text or '')}"


def answer_lines(question: Question, answer: Answer, plain: Answer | None) -> list[Text]:
    """An answer, p of each of its tokens, and what the run was trained to answer.

    Args:
        question: what was asked.
        answer: of the adapter.
        plain: of the model without the adapter; None: not asked.
    """
    lines = [Text(printable(answer.text)), _tokens(answer), *_cut_off(answer)]
    trained = question.trained
    if trained is not None and trained.text != answer.text:
        lines.append(_note(f"the run was trained on: {shown(trained.text, ANSWER_WIDTH)}"))
    if plain is not None:
        lines += [_note("without the adapter:"), Text(printable(plain.text)), *_cut_off(plain)]
    return lines


def _cut_off(answer: Answer) -> list[Text]:
    """A note where an answer did not come to its end."""
    if answer.ended:
        return []
    return [_note(f"(cut off after {counted(answer.tokens, 'token')}; --max-tokens)")]


def printable(text: str) -> str:
    """A text of several lines without what a terminal would obey.

    Line ends and tabs stay; other control characters are escaped.
    """
    characters = []
    for character in text:
        is_safe = character.isprintable() or character in "\n\t"
        characters.append(character if is_safe else repr(character)[1:-1])
    return "".join(characters)


def _note(text: str) -> Text:
    return Text(text, style="dim")


def _tokens(answer: Answer) -> Text:
    """p of each token on one line, coloured by it."""
    line = Text("p ", style="dim")
    for token in answer.tokens[:MAX_TOKENS]:
        line.append(f" {shown(token.text, TOKEN_WIDTH)} ", style="dim")
        line.append(f"{token.p:.2f}", style=_style(token))
    if len(answer.tokens) > MAX_TOKENS:
        line.append(f" and {len(answer.tokens) - MAX_TOKENS} more (--json)", style="dim")
    return line


def _style(token: AnswerToken) -> str:
    if token.p > CERTAIN:
        return "green"
    return "yellow" if token.p > UNSURE else "red"
