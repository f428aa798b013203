"""How much of the frozen model's work is done at once, for the model and the cost model.

Without torch.
"""

HEAD_CHUNK = 2048
"""Tokens whose logits exist at once (model/head.py)."""

PREFIX_ROWS = 8
"""Rows of a prefix that are computed at once (model/split_model.py)."""
