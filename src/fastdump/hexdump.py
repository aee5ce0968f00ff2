"""Bytes as ``hexdump -C`` shows them, with addresses."""

from __future__ import annotations

from collections.abc import Iterator

_SHOWN = bytes(c if 0x20 <= c < 0x7F else ord(".") for c in range(256))
WIDTH = 16


def hexdump(data: bytes, address: int) -> Iterator[str]:
    """A line for each 16 bytes; the addresses of lines are multiples of 16."""
    before = address % WIDTH
    digits = 16 if address + len(data) > 1 << 32 else 8
    for at in range(-before, len(data), WIDTH):
        part = data[max(at, 0) : at + WIDTH]
        cells = ["  "] * max(-at, 0) + [f"{byte:02x}" for byte in part]
        cells += ["  "] * (WIDTH - len(cells))
        text = " " * max(-at, 0) + part.translate(_SHOWN).decode("ascii")
        left, right = " ".join(cells[:8]), " ".join(cells[8:])
        yield f"{address + at:0{digits}x}  {left}  {right}  |{text}|"
