"""Names as people write them, of those that compilers make; by the packages of the extra ``names``.

Without these, and where they fail, a name stays as it is.
"""

from __future__ import annotations

import contextlib
import functools
import re
from typing import Any

# The hash at the end tells what rustc mangles the legacy way from C++.
_RUST = re.compile(r"_R|_ZN.*17h[0-9a-f]{16}E")
# Parts of a name that may be referred to later, and that are. Each reference may double a name, so
# that 200 bytes are one of 25 MB; and the parser compares all that it may refer to.
_MOST_PARTS = 1 << 16
# Such references of Rust (B): two may double a name. Of 200,000 symbols of rustc 0.5% have more.
_MOST_REFERENCES = 20


@functools.lru_cache(4096)
def demangled(symbol: str) -> str:
    """A symbol of a function or variable."""
    if _RUST.match(symbol):
        return demangled_rust(symbol)
    return _parsed(symbol) or symbol if symbol.startswith("_Z") else symbol


@functools.lru_cache(4096)
def demangled_type(name: str) -> str:
    """A type's name, as ``type_info`` has it."""
    text = _parsed(f"_ZTS{name}").removeprefix("typeinfo name for ")
    return text.replace("_GLOBAL__N_1::", "") or name


@functools.lru_cache(4096)
def demangled_rust(symbol: str) -> str:
    """A symbol of Rust, without its hash."""
    if symbol.startswith("_R") and symbol.count("B") > _MOST_REFERENCES:
        return symbol
    try:
        import rust_demangler

        with contextlib.redirect_stdout(None):  # it prints what it does not understand
            text = str(rust_demangler.demangle(symbol))
    except Exception:  # untrusted text in a foreign parser; or there is none
        text = symbol
    return re.sub(r"::h[0-9a-f]{16}$", "", text)


def _parsed(symbol: str) -> str:
    """What C++ calls it; empty where that cannot be told."""
    try:
        import itanium_demangler

        tree = itanium_demangler._parse_mangled_name(_bounded_cursor()(symbol))
        return str(itanium_demangler._expand_arg_packs(tree)) if tree else ""
    except Exception:  # likewise
        return ""


@functools.cache
def _bounded_cursor() -> Any:
    """That of the parser, but it ends what would take seconds or minutes."""
    from itanium_demangler import _Cursor

    class Bounded(_Cursor):  # type: ignore[misc]
        def __init__(self, symbol: str) -> None:
            super().__init__(symbol)
            # References to template arguments (T_) are resolved when all is parsed.
            self._left = _MOST_PARTS // (1 + symbol.count("T"))

        def _spend(self, node: object) -> None:
            self._left -= _parts(node)
            if self._left < 0:
                raise ValueError("it has too many parts")

        def add_subst(self, node: object) -> None:
            self._spend(node)
            super().add_subst(node)

        def resolve_subst(self, seq_id: int) -> Any:
            node = super().resolve_subst(seq_id)
            self._spend(node)
            return node

    return Bounded


def _parts(node: object) -> int:
    """How many a name has, repeated ones each time."""
    return 1 + sum(map(_parts, node)) if isinstance(node, tuple) else 1
