"""What loaders raise, as one line for the user.

What transformers, safetensors, tokenizers and a model's own code may raise for files that they
cannot use is not enumerable, so everything is caught.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pml_cli.config.schema import Model
from pml_cli.errors import UserError, first_line
from pml_cli.model.device import is_fault_of_machine

# Their messages are written for people; others need the name of their type to make sense.
PLAIN_ERRORS = (OSError, ValueError)

MAX_LETTERS = 500


@contextmanager
def one_line(option: str, reason: str = "") -> Iterator[None]:
    """Turn whatever is raised inside into a `UserError` of one line.

    Memory that ran out and a GPU that no longer answers are no faults of the files, and pass.

    Args:
        option: the option at fault, and its value.
        reason: what could not be done; the error follows in brackets.

    Raises:
        UserError: something was raised.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_fault_of_machine(error):
            raise

        message = error_line(error)
        text = f"{reason} ({message})" if reason else message
        raise UserError(f"{option}: {text}") from error


@contextmanager
def named_model(model: Model) -> Iterator[None]:
    """Put the setting in front of what is wrong with one of a model's files.

    Raises:
        UserError: one was raised inside.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"model.path={model.path}: {error}") from error


def error_line(error: Exception) -> str:
    """An exception in one line: its message, with its type where the message needs it."""
    line = first_line(error)
    # A heading, as of transformers' validators: what is wrong comes below it.
    lines = [text_line.strip() for text_line in str(error).splitlines() if text_line.strip()]
    if line.endswith(":") and len(lines) > 1:
        line = f"{line} {lines[1]}"

    # transformers lists all the types of models that it knows.
    if len(line) > MAX_LETTERS:
        line = f"{line[:MAX_LETTERS]}..."

    name = type(error).__name__
    if isinstance(error, PLAIN_ERRORS) or line == name:
        return line
    return f"{name}: {line}"
