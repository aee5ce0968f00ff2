"""Search a place for strings; those that are too long to be kept are read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fastdump._native import Copier
from fastdump._strings import ENCODING_NAMES, Form, Found, Giant, Scanner, ffi, text_of
from fastdump.place import Place, Stream
from fastdump.sweep import Sweep, sweep

# Of a string that was too long to be kept, so many bytes are shown where it must be in one piece.
WHOLE_MOST = 64 << 20


@dataclass
class StringsReport(Sweep):
    """What a search came to. Bytes, seconds."""

    strings: int
    bytes: int


def search(
    place: Place,
    scanners: Sequence[Scanner],
    handle: Callable[[Found | Giant], None] | None = None,
    every: int = 1,
) -> StringsReport:
    """Search a place, one thread a scanner; as :func:`sweep`."""
    stream = place.found(scanners[0]) if isinstance(place, Stream) else None
    swept = sweep(place, scanners, handle, stream, every=every)
    return StringsReport(
        **vars(swept),
        strings=sum(s.strings for s in scanners),
        bytes=sum(s.bytes for s in scanners),
    )


def giant_text(place: Place, giant: Giant, copier: Copier, unicode: str) -> Iterator[bytes]:
    """The text of a string that must be read again, in parts."""
    rest = b""
    for _, view in place.read(copier, giant.address, giant.length):
        block = rest + bytes(view)
        whole = len(block) // 4 * 4  # no encoding has a character that is longer
        if ENCODING_NAMES[giant.encoding] == "U":
            whole = _whole_utf8(block)
        yield text_of(giant.encoding, unicode, block[:whole])
        rest = block[whole:]
    yield text_of(giant.encoding, unicode, rest)


def _whole_utf8(block: bytes) -> int:
    """The length of *block* without the character that it ends within."""
    for back in range(1, min(4, len(block)) + 1):
        lead = block[-back]
        if lead >= 0xC0:
            size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return len(block) - back if size > back else len(block)
        if lead < 0x80:
            break
    return len(block)


def read_giant(place: Place, giant: Giant, copier: Copier, form: Form, unicode: str) -> Found:
    """A giant as any other string, but at most its first WHOLE_MOST bytes; of a pipe the last."""
    part = giant._replace(length=min(giant.length, WHOLE_MOST))
    if isinstance(place, Stream):
        part = part._replace(address=giant.address + giant.length - part.length)
    head = head_of(place, giant, form)
    text = b"".join(giant_text(place, part, copier, unicode))
    line = head + text + form.separator
    record = ffi.new("struct fastdump_record *")
    record.address, record.length = giant.address, giant.length
    record.region, record.encoding = giant.region, giant.encoding
    record.text, record.text_length, record.line_length = len(head), len(text), len(line)
    return Found(memoryview(line), record, 1)


def head_of(place: Place, giant: Giant, form: Form) -> bytes:
    """What a line has before its text, as GNU strings prints it."""
    if not form.radix:
        return form.prefix
    address = place.printed(giant.address, giant.region)
    return form.prefix + {8: b"%7o ", 10: b"%7d ", 16: b"%7x "}[form.radix] % address
