"""The format of law.json."""

from __future__ import annotations

FORMAT = 3  # of law.json
