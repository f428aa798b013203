"""Rounding of weights against scales computed by hand."""

import torch

from pml_cli.evaluation.quantize import to_bfloat16, to_int4, to_int8


def test_integers_are_those_of_the_hand_computed_scale():
    """Output channels are columns where dimension 0 is summed over: scales 1, 0.01 and none."""
    weight = torch.tensor(
        [[127.0, 1.27, 0.0], [0.4, -0.5, 0.0], [-2.6, 0.016, 0.0], [63.5, 0.0, 0.0]]
    )
    # 63.5 goes to the even neighbour.
    expected = torch.tensor(
        [[127.0, 1.27, 0.0], [0.0, -0.5, 0.0], [-3.0, 0.02, 0.0], [64.0, 0.0, 0.0]]
    )
    torch.testing.assert_close(to_int8(weight, 0), expected)
    torch.testing.assert_close(to_int8(weight.T.contiguous(), 1), expected.T)

    rows = torch.tensor([[7.0, 3.4, -3.6, 0.5], [0.7, 0.34, 0.05, -0.06]])
    expected_rows = torch.tensor([[7.0, 3, -4, 0], [0.7, 0.3, 0.0, -0.1]])
    torch.testing.assert_close(to_int4(rows, 1), expected_rows)


def test_the_matrices_of_a_stack_are_rounded_one_by_one():
    weight = torch.tensor([[127.0, 1.27], [0.4, -0.5], [-2.6, 0.016]])
    stacked = torch.stack([weight, 2 * weight])
    rounded = to_int8(weight, 0)
    torch.testing.assert_close(to_int8(stacked, 1), torch.stack([rounded, 2 * rounded]))


def test_bfloat16_keeps_eight_significant_bits():
    weight = torch.tensor([1 + 2**-7, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159])
    assert to_bfloat16(weight, 0).tolist() == [1 + 2**-7, 1.0, 1 + 2**-6, -3.140625]
