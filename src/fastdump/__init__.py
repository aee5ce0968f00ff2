"""Dump and scan the memory of a live Linux process, at the speed of memory."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Batch", "Match", "batches", "strings"]


def __getattr__(name: str) -> Any:
    """The API is imported when it is used: the command line starts without it."""
    if name in __all__:
        from fastdump import matches

        return getattr(matches, name)
    raise AttributeError(name)
