"""Names as people write them, of those that compilers make; by the packages of the extra ``names``.

Without these, and where they fail, a name stays as it is.
"""

from __future__ import annotations

import functools
import re

# The hash at the end tells what rustc mangles the legacy way from C++.
_RUST = re.compile(r"_R|_ZN.*17h[0-9a-f]{16}E")


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
    try:
        import rust_demangler

        text = str(rust_demangler.demangle(symbol))
    except Exception:  # untrusted text in a foreign parser; or there is none
        text = symbol
    return re.sub(r"::h[0-9a-f]{16}$", "", text)


def _parsed(symbol: str) -> str:
    """What C++ calls it; empty where that cannot be told."""
    try:
        from itanium_demangler import parse

        return str(parse(symbol) or "")
    except Exception:  # likewise
        return ""
