"""Dump and scan the memory of a live Linux process, at the speed of memory."""

from __future__ import annotations

TYPE_CHECKING = False  # typing is slow; before __main__ an interrupt cannot be told in one line
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"
_MODULES = {
    "Batch": "matches",
    "Match": "matches",
    "Opened": "api",
    "PatternMatch": "memory_search",
    "attach": "api",
    "batches": "matches",
    "open": "api",
    "search": "memory_search",
    "strings": "matches",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """The API is imported when it is used: the command line starts without it."""
    if name in _MODULES:
        import importlib

        return getattr(importlib.import_module(f"fastdump.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'fastdump' has no attribute {name!r}")
