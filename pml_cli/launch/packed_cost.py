"""The cost of a step on packed rows (model/packed_rows.py). Without torch.

In the last layer only keys and values are of all tokens; the rest is of queries. Attention has an
explicit mask, so it computes all pairs. What a model of an unknown family does not allow is not
known here: its rows are priced as packed all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pml_cli.model.dims import Matrix, Stage

if TYPE_CHECKING:
    from pml_cli.launch.cost_model import PackWork, Site

# Projections that run alone for all tokens of the last layer, and not again for its queries.
KEY_NAMES = ("k_proj", "v_proj")


def layer_flops(work: PackWork, *, backward: bool) -> float:
    """FLOPs of the layers and adapters above the prefix in a forward pass of one step.

    Args:
        work: of a pack with packed rows.
        backward: with the backward pass.
    """
    total = 0.0
    for layer in work.upper_layers:
        for name, matrix in work.shape.matrices.items():
            tokens = _tokens_through(work, layer, name, matrix.stage)
            directions = 1 + (backward and work.gradient_flows(layer, matrix.stage))
            total += tokens * directions * 2 * matrix.inputs * matrix.outputs

        queries = work.step_queries if layer == work.upper_layers[-1] else work.step_tokens
        products = 2
        if backward and work.gradient_flows(layer, Stage.SCORES):
            # Fused attention computes the scores again.
            products += 4 if work.shape.unfused_heads else 5
        total += queries * products * 2 * work.shape.query_width * work.attended_tokens

    sites = sum(_site_flops(work, site, backward=backward) for site in work.sites)
    return total + sites


def _site_flops(work: PackWork, site: Site, *, backward: bool) -> float:
    """FLOPs of one adapter in a step: of x @ A @ B, and with `backward` of their gradients."""
    matrix = site.matrix
    width = matrix.inputs + matrix.outputs
    if backward:
        # Gradients of A, B and x @ A; of x, unless it is a cached constant.
        has_gradient = not work.is_block and work.gradient_flows(*site.position)
        width += matrix.inputs * (1 + has_gradient) + 2 * matrix.outputs

    tokens: float = work.step_tokens
    if not work.is_block:
        tokens = _tokens_through(work, site.layer, _matrix_name(work, matrix), matrix.stage)
    return tokens * 2 * work.rank * width


def _matrix_name(work: PackWork, matrix: Matrix) -> str:
    names = [name for name, other in work.shape.matrices.items() if other is matrix]
    return names[0]


def _tokens_through(work: PackWork, layer: int, name: str, stage: Stage) -> float:
    """Tokens of a step that a matrix multiplies: in the last layer fewer, but for its keys."""
    if not work.upper_layers or layer != work.upper_layers[-1]:
        return work.step_tokens
    if name.endswith(KEY_NAMES):
        return work.step_tokens
    if stage is Stage.QKV and not name.endswith("q_proj"):
        # Fused: keys and values of all tokens, then all of it for the queries.
        return work.step_tokens + work.step_queries
    return work.step_queries


def saved_bytes(work: PackWork) -> float:
    """Bytes of the layers that the forward pass saves for the backward pass."""
    saved = work.saved_bytes_per_token()
    if_all_tokens_ran = work.step_tokens * saved.stored
    if not work.upper_layers or work.checkpointing:
        return if_all_tokens_ran

    # Of all tokens the last layer saves the norm before attention, and keys and values, which are
    # repeated for the heads that share them.
    in_last_layer = work.saved_by_last_layer()
    keys_and_values = 2 * work.shape.query_width * work.number_bytes
    if work.shape.family.norms_queries_and_keys:
        keys_and_values += work.shape.key_width * work.float32_bytes
    without_query = min(in_last_layer, keys_and_values + work.saved_by_norm())
    tokens_without_query = work.step_tokens - work.step_queries
    return if_all_tokens_ran - tokens_without_query * (in_last_layer - without_query)


def mask_bytes(work: PackWork) -> float:
    """Bytes of the mask of all pairs of tokens, and of what it is made of."""
    return work.step_tokens * work.attended_tokens * (work.number_bytes + 3)
