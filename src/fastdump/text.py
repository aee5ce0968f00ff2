"""Text for people: sizes, and text from a target made safe for a terminal."""

from __future__ import annotations

import shlex

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def printable(text: str) -> str:
    """*text* with every character that is not printable as an escape.

    Paths and names are the target's: they must not reach a terminal as control codes, and
    bytes that are no UTF-8 (surrogates here) cannot be written at all.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape, PEP 383
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def encoded(text: str) -> bytes:
    """The bytes of a name or path of the target: they are no text of our locale."""
    return text.encode("utf-8", "surrogateescape")


def decoded(data: bytes) -> str:
    """The same the other way round; bytes that are no UTF-8 become surrogates, PEP 383."""
    return data.decode("utf-8", "surrogateescape")


def size(length: int) -> str:
    """*length* bytes in binary units, in at most 9 characters."""
    value = float(length)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    if unit == "B":
        return f"{length} B"
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"


def cut(text: str, most: int) -> str:
    """*text* made printable, and not longer than *most* characters."""
    text = printable(text)
    return text if len(text) <= most else text[: most - 3] + "..."


def share(part: int, whole: int) -> str:
    """*part* of *whole* in percent; of nothing there is none."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def suggested(command: str, source: str, *options: str) -> str:
    """A command to try on a source: a pid, or what a shell reads as its name."""
    return " ".join(("fastdump", command, shlex.quote(source), *options))


def suggested_map(source: str) -> str:
    """The command that shows what regions a source has; ``maps`` is of processes only."""
    if source.isdigit():
        return suggested("maps", source, "--sort resident")
    return suggested("info", source, "--regions")
