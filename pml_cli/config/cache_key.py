"""Settings as a cache key."""

from __future__ import annotations

from typing import Any


class CacheKey:
    """Settings as a cache key: equal settings, equal key."""

    def __init__(self, value: Any) -> None:
        self.value, self.key = value, repr(value)  # a dataclass's repr begins with its name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CacheKey) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)
