"""How much of the frozen model's work is done at once, for the model and the cost model.

Without torch.
"""

HEAD_CHUNK = 2048
"""Tokens that the head scores at once (model/head.py)."""

HEAD_WORDS = 16384
"""Words whose logits exist at once, of one chunk; on a CPU less, so that its cache holds them."""

CPU_HEAD_WORDS = 2048

PREFIX_ROWS = 8
"""Rows of a prefix that are computed at once (model/split_model.py)."""
