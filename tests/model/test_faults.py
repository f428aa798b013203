"""What loaders raise becomes one line."""

import pytest
import torch

from pml_cli.errors import UserError
from pml_cli.model.faults import error_line, one_line


class StrictError(Exception):
    """As of validators: a heading, and below it what is wrong."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("is wrong\nmore of it"), "is wrong"),
        (OSError("no such file"), "no such file"),
        (KeyError("F8_E4M3"), "KeyError: 'F8_E4M3'"),
        (AssertionError(), "AssertionError"),
        (
            AssertionError("\n\nPadding_idx must be below 7"),
            "AssertionError: Padding_idx must be below 7",
        ),
        (
            StrictError("Class validation:\n    sizes differ\n"),
            "StrictError: Class validation: sizes differ",
        ),
    ],
)
def test_whatever_is_raised_is_one_line(error, line):
    assert error_line(error) == line
    with pytest.raises(UserError) as caught, one_line("model.path=x"):
        raise error
    assert str(caught.value) == f"model.path=x: {line}"
    assert caught.value.__cause__ is error

    with pytest.raises(UserError) as caught, one_line("model.path=x", "cannot be read"):
        raise error
    assert str(caught.value) == f"model.path=x: cannot be read ({line})"


@pytest.mark.parametrize(
    "error",
    [
        UserError("own line"),
        KeyboardInterrupt(),
        MemoryError(),
        RuntimeError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
    ],
)
def test_what_is_no_fault_of_the_files_passes(error):
    with pytest.raises(type(error)) as caught, one_line("model.path=x"):
        raise error
    assert caught.value is error


def test_a_list_of_every_type_of_model_is_cut():
    line = error_line(ValueError(f"unknown; one of {'x, ' * 5000}"))
    assert line.startswith("unknown; one of x")
    assert len(line) < 600
