"""Caches of file contents, kept for one command, with settings objects as their keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

_caches: list[Any] = []


def file_cache(maxsize: int) -> Callable[[Function], Function]:
    """`lru_cache` for a function that reads files; `forget_files` clears it."""

    def cached(function: Function) -> Function:
        cache = lru_cache(maxsize=maxsize)(function)
        _caches.append(cache)
        return cast(Function, cache)

    return cached


def forget_files() -> None:
    """Forget what was read of files: in a notebook they may have been edited since."""
    for cache in _caches:
        cache.cache_clear()


class CacheKey:
    """A hashable holder of settings: equal settings, equal key.

    Attributes:
        value: the settings, a mutable dataclass.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        # A dataclass's repr begins with the name of its class.
        self._text = repr(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CacheKey) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)
