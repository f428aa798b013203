"""The conditions under which `pml lasting` deploys an adapter, by name.

Without torch: reports read them too. deployment.py applies them.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAINED = "trained"
BF16 = "bf16"
BASE_INT8 = "base_int8"

# Status of a condition that needs the adapter merged, and why it cannot be.
NOT_MERGEABLE = "not mergeable"
NOT_MERGEABLE_REASON = (
    "beside a whole MLP, whose activation lies between its matrices: none of them takes up "
    "x @ A @ B (it could only be appended to the block, as neurons without an activation)"
)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What is rounded, and to which type (bfloat16, int8 or int4; empty: nothing)."""

    name: str
    meaning: str
    adapter: str = ""
    """Type of A and B, each rounded by itself."""
    base: str = ""
    """Type of the base: bfloat16 rounds every weight, int8 the matrices of the decoder layers."""
    merged: bool = False
    """Whether the adapter is added to the weights of its modules."""
    merged_weights: str = ""
    """Type of the merged matrices."""
    bf16: bool = False
    """Whether weights and arithmetic of the whole model, adapter included, are bfloat16."""


# In the order of the tables. The key of a measurement holds their names: a run is measured again
# when one is new.
CONDITIONS = (
    Condition(name=TRAINED, meaning="as trained"),
    Condition(
        name="adapter_bf16",
        meaning="adapter weights rounded to bfloat16",
        adapter="bfloat16",
    ),
    Condition(
        name="adapter_int8",
        meaning="adapter weights rounded to int8 by output channel of A and of B",
        adapter="int8",
    ),
    Condition(
        name="adapter_int4",
        meaning="adapter weights rounded to int4 by output channel of A and of B",
        adapter="int4",
    ),
    Condition(
        name="base_bf16",
        meaning="base weights rounded to bfloat16, adapter as trained",
        base="bfloat16",
    ),
    Condition(
        name=BASE_INT8,
        meaning=(
            "matrices of the base's layers rounded to int8 by output channel, adapter as trained"
        ),
        base="int8",
    ),
    Condition(
        name=BF16,
        meaning="the whole model, adapter included, in bfloat16: weights and arithmetic",
        bf16=True,
    ),
    Condition(
        name="merged",
        meaning="adapter merged into the base's matrices, in float32",
        merged=True,
    ),
    Condition(
        name="merged_bf16",
        meaning="merged, then the merged matrices rounded to bfloat16",
        merged=True,
        merged_weights="bfloat16",
    ),
    Condition(
        name="merged_int8",
        meaning="merged, then the merged matrices rounded to int8 by output channel",
        merged=True,
        merged_weights="int8",
    ),
    Condition(
        name="bf16_merged",
        meaning="merged into bfloat16 weights, and the whole model in bfloat16",
        merged=True,
        bf16=True,
    ),
)
BY_NAME = {condition.name: condition for condition in CONDITIONS}
