"""The ways in which `pml lasting` deploys an adapter, by name. Without torch; what they do is in deployed.py."""

from __future__ import annotations

from dataclasses import dataclass

TRAINED, HALF, NOT_MERGEABLE = "trained", "bf16", "not mergeable"


@dataclass(frozen=True)
class Condition:
    """What is rounded, and to what (bfloat16, int8, int4; empty: nothing)."""

    name: str
    meaning: str
    adapter: str = ""  # A and B, each by itself
    base: str = ""  # bfloat16: every weight; int8: the matrices of the decoder layers
    merged: bool = False  # the adapter is added to the weights of its modules
    after: str = ""  # the merged matrices
    half: bool = False  # weights and arithmetic of the whole model, adapter included, in bfloat16


CONDITIONS = (
    Condition(TRAINED, "as trained"),
    Condition("adapter_bf16", "adapter weights rounded to bfloat16", adapter="bfloat16"),
    Condition(
        "adapter_int8",
        "adapter weights rounded to int8 by output channel of A and of B",
        adapter="int8",
    ),
    Condition(
        "adapter_int4",
        "adapter weights rounded to int4 by output channel of A and of B",
        adapter="int4",
    ),
    Condition("base_bf16", "base weights rounded to bfloat16, adapter as trained", base="bfloat16"),
    Condition(
        "base_int8",
        "matrices of the base's layers rounded to int8 by output channel, adapter as trained",
        base="int8",
    ),
    Condition(
        HALF, "the whole model, adapter included, in bfloat16: weights and arithmetic", half=True
    ),
    Condition("merged", "adapter merged into the base's matrices, in float32", merged=True),
    Condition(
        "merged_bf16",
        "merged, then the merged matrices rounded to bfloat16",
        merged=True,
        after="bfloat16",
    ),
    Condition(
        "merged_int8",
        "merged, then the merged matrices rounded to int8 by output",
        merged=True,
        after="int8",
    ),
    Condition(
        "bf16_merged",
        "merged into bfloat16 weights, and the whole model in bfloat16",
        merged=True,
        half=True,
    ),
)
BY_NAME = {condition.name: condition for condition in CONDITIONS}
WHY_NOT = (
    "beside a whole MLP, whose activation lies between its matrices: none of them takes up x @ A @ B "
    "(it could only be appended to the block, as neurons without an activation)"
)
