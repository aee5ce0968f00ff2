"""Patterns: what is searched for, as users write it.

``text``, ``text:text``, ``u16:text`` (UTF-16, little endian), ``hex:de ad ?? e?``, numbers
(``u32:1234``, ``f64:0.5``), ``ptr:7f00-7f80`` and ``regex:...``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from fastdump.errors import UsageError
from fastdump.expressions import Expression

# Bytes of a pattern, and of what a regular expression finds.
LONGEST = 4096

_NUMBERS = {
    "u8": "B",
    "i8": "b",
    "uint16": "H",
    "int16": "h",
    "u32": "I",
    "i32": "i",
    "u64": "Q",
    "i64": "q",
    "f32": "f",
    "f64": "d",
}
_NIBBLES = re.compile(r"[0-9a-fA-F?]*")
_FOLD = 0xDF  # 'a' and 'A' are the same under this mask


class Bytes(NamedTuple):
    """Where ``(memory & mask) == value``; ``text`` is what the user wrote."""

    text: str
    value: bytes
    mask: bytes


class Pointers(NamedTuple):
    """Aligned words that point into *target*: see ``addresses.py``."""

    text: str
    target: str


Pattern = Bytes | Pointers | Expression


def parse(text: str, ignore_case: bool = False) -> Pattern:
    """A pattern as a user writes it.

    Args:
        ignore_case: ASCII letters of text, and of regular expressions, in both cases.

    Raises:
        UsageError: It makes no sense, is too long, or is found in zeros.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind in _KINDS:
        pattern = _KINDS[kind](text, rest, ignore_case)
    else:
        pattern = _text(text, text, ignore_case)
    if isinstance(pattern, Bytes):
        if not pattern.value:
            raise UsageError(f"the pattern {text!r} is empty")
        if len(pattern.value) > LONGEST:
            raise UsageError(f"a pattern of {len(pattern.value)} bytes", f"the most is {LONGEST}")
        if not any(pattern.value):
            raise of_zeros(text)
    return pattern


def of_zeros(text: str) -> UsageError:
    """The error for a pattern that zeros match."""
    return UsageError(
        f"the pattern {text!r} is found in zeros: in all memory that was never touched",
        "give it a byte that is not zero",
    )


def _fixed(text: str, value: bytes, ignore_case: bool = False) -> Bytes:
    mask = bytes(_FOLD if ignore_case and bytes([c]).isalpha() else 0xFF for c in value)
    return Bytes(text, bytes(c & m for c, m in zip(value, mask, strict=True)), mask)


def _text(text: str, rest: str, ignore_case: bool) -> Bytes:
    return _fixed(text, rest.encode("utf-8", "surrogateescape"), ignore_case)


def _wide(text: str, rest: str, ignore_case: bool) -> Bytes:
    value = rest.encode("utf-16-le", "surrogatepass")
    found = _fixed(text, value, ignore_case)
    if not ignore_case:
        return found
    # The low byte of a character that is not ASCII may look like a letter.
    ascii_only = bytes(
        m if value[i | 1] == 0 and i % 2 == 0 else 0xFF for i, m in enumerate(found.mask)
    )
    return Bytes(text, bytes(c & m for c, m in zip(value, ascii_only, strict=True)), ascii_only)


def _hex(text: str, rest: str, ignore_case: bool) -> Bytes:
    digits = "".join(rest.split())
    if not _NIBBLES.fullmatch(digits) or len(digits) % 2:
        raise UsageError(
            f"the pattern {text!r} is not hexadecimal", "as in 'hex:de ad ?? e?': two digits a byte"
        )
    return Bytes(
        text,
        bytes.fromhex(digits.replace("?", "0")),
        bytes.fromhex("".join("0" if d == "?" else "f" for d in digits)),
    )


def _number(kind: str) -> Callable[[str, str, bool], Bytes]:
    def parsed(text: str, rest: str, ignore_case: bool) -> Bytes:
        code = _NUMBERS[kind]
        try:
            value = float(rest) if code in "fd" else int(rest, 0)
            return _fixed(text, struct.pack(f"<{code}", value))
        except (ValueError, OverflowError, struct.error):
            raise UsageError(f"the pattern {text!r}: {rest!r} is no {kind}") from None

    return parsed


def _pointers(text: str, rest: str, ignore_case: bool) -> Pointers:
    if not rest:
        raise UsageError(f"the pattern {text!r} is empty")
    return Pointers(text, rest)


def _regex(text: str, rest: str, ignore_case: bool) -> Expression:
    return Expression(text, rest.encode("utf-8", "surrogateescape"), ignore_case)


_KINDS: dict[str, Callable[[str, str, bool], Pattern]] = {
    "text": _text,
    "u16": _wide,
    "hex": _hex,
    "ptr": _pointers,
    "regex": _regex,
    **{kind: _number(kind) for kind in _NUMBERS},
}
