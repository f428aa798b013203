"""Cells for training tests, trained as one pack or each alone, and their comparison."""

import hashlib

import numpy as np
import pandas as pd

from pml_cli.training.trainer import Cell, Trainer


def untrained(cells):
    """The same cells without an outcome."""
    return [Cell(run=cell.run, samples=cell.samples) for cell in cells]


def train_packed(base, cells, *, cached=True):
    """Fresh copies of the cells, trained as one pack."""
    copies = untrained(cells)
    Trainer(base, copies, cached=cached).train()
    return copies


def train_solo(base, cells):
    """Fresh copies of the cells, each trained alone."""
    return [train_packed(base, [cell])[0] for cell in cells]


def digest(cell):
    """A hash of the final scores and the adapter of a trained cell."""
    content = hashlib.sha256(cell.final.nll.tobytes())
    for parameter in cell.adapter.parameters():
        content.update(parameter.detach().numpy().tobytes())
    return content.hexdigest()


def assert_same_outcome(cell, expected, tolerance):
    """Adapters, scores and curves of two trainings of one cell."""
    assert (cell.failure is None) == (expected.failure is None)
    assert cell.steps_run == expected.steps_run
    if cell.failure is not None:
        return

    rank = cell.run.rank
    for name in cell.adapter.sites:
        # Beyond the cell's own rank lies the padding of its pack.
        A = cell.adapter.A[name][..., :rank]
        B = cell.adapter.B[name][:, :rank]
        A_difference = A - expected.adapter.A[name][..., :rank]
        B_difference = B - expected.adapter.B[name][:, :rank]
        assert A_difference.abs().max().item() <= tolerance
        assert B_difference.abs().max().item() <= tolerance
    np.testing.assert_allclose(cell.final.nll, expected.final.nll, rtol=0, atol=tolerance)
    np.testing.assert_allclose(cell.initial.nll, expected.initial.nll, rtol=0, atol=tolerance)

    curve = pd.concat(cell.curve)
    expected_curve = pd.concat(expected.curve)
    assert list(curve["step"]) == list(expected_curve["step"])
    for name in ("loss", "nll", "weight_above", "gradient_above", "grad_norm", "lr"):
        column = expected_curve[name]
        np.testing.assert_allclose(curve[name], column, rtol=tolerance, atol=tolerance)


def assert_all_same(cells, expected, tolerance):
    """`assert_same_outcome` of each pair."""
    for cell, expected_cell in zip(cells, expected, strict=True):
        assert_same_outcome(cell, expected_cell, tolerance)
