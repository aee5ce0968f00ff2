"""ELF cores of other kinds: 32 bit, big-endian, PN_XNUM, overlaps; built here field by field."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import fastdump
from fastdump.errors import CorruptDump, FaultError

PAGE = 4096


def core(
    loads: list[tuple[int, int, int, bytes]],
    *,
    wide: bool = True,
    order: str = "<",
    notes: bytes = b"",
    extended: bool = False,
) -> bytes:
    """A core with PT_LOADs ``p_flags, p_vaddr, p_memsz, content``, and the section header that
    *extended* numbering needs."""
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    word, ehsize, phentsize, shentsize = ("Q", 64, 56, 64) if wide else ("I", 52, 32, 40)
    count = len(loads) + 1
    notes_at = ehsize + phentsize * count
    at = -(-(notes_at + len(notes)) // PAGE) * PAGE
    headers = [(4, 0, notes_at, 0, len(notes), 0)]
    body = b""
    for flags, vaddr, memsz, content in loads:
        headers.append((1, flags, at + len(body), vaddr, len(content), memsz))
        body += content
    shoff = at + len(body) if extended else 0
    out = ident + struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        4, 62, 1, 0, ehsize, shoff, 0, ehsize, phentsize,
        0xFFFF if extended else count, shentsize, int(extended), 0,
    )  # fmt: skip
    for p_type, flags, offset, vaddr, filesz, memsz in headers:
        if wide:
            fields = (p_type, flags, offset, vaddr, 0, filesz, memsz, PAGE)
            out += struct.pack(f"{order}IIQQQQQQ", *fields)
        else:
            fields = (p_type, offset, vaddr, 0, filesz, memsz, flags, PAGE)
            out += struct.pack(f"{order}8I", *fields)
    out = (out + notes).ljust(at, b"\0") + body
    if extended:
        out += bytes(44 if wide else 28) + struct.pack(f"{order}I", count)  # sh_info
        out = out.ljust(shoff + shentsize, b"\0")
    return out


def note(order: str, n_type: int, desc: bytes) -> bytes:
    return (
        struct.pack(f"{order}III", 5, len(desc), n_type)
        + b"CORE\0\0\0\0"
        + desc.ljust(-(-len(desc) // 4) * 4, b"\0")
    )


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extended", [False, True])
def test_each_class_and_byte_order(tmp_path: Path, wide: bool, order: str, extended: bool) -> None:
    word = "Q" if wide else "I"
    mapped = struct.pack(f"{order}5{word}", 1, PAGE, 0x20000, 0x22000, 3) + b"/lib/x.so\0"
    path = tmp_path / "a.core"
    path.write_bytes(
        core(
            [(6, 0x10000, PAGE, b"hello" + bytes(PAGE - 5)), (5, 0x20000, 2 * PAGE, b"")],
            wide=wide,
            order=order,
            notes=note(order, 0x46494C45, mapped),
            extended=extended,
        )
    )
    with fastdump.open(path) as source:
        assert [(r.start, r.end, r.perms, r.path, r.offset) for r in source.regions] == [
            (0x10000, 0x11000, "rw-p", "", 0),
            (0x20000, 0x22000, "r-xp", "/lib/x.so", 3 * PAGE),
        ]
        assert source.read(0x10000, 5) == b"hello"
        with pytest.raises(FaultError, match="not in the dump"):
            source.read(0x20000, 1)
        assert [m.text for m in source.strings()] == ["hello"]


def test_where_segments_overlap_the_one_that_begins_first_has_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.core"
    a, b = b"a" * (2 * PAGE), b"b" * (2 * PAGE)
    path.write_bytes(core([(6, 0x10000, 2 * PAGE, a), (6, 0x11000, 2 * PAGE, b)]))
    with fastdump.open(path) as source:
        assert source.read(0x10000, 3 * PAGE) == a + b[:PAGE]
        assert "overlap" in source.info()["problems"][0]


def test_what_is_no_core_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.core"
    path.write_bytes(core([(6, 0x10000, PAGE, bytes(PAGE))])[:40])
    with pytest.raises(CorruptDump, match="cut off"):
        fastdump.open(path)
    for length in (PAGE, 2 * PAGE):  # the end itself is no address either
        path.write_bytes(core([(6, 2**64 - PAGE, length, bytes(PAGE))]))
        with pytest.raises(CorruptDump, match="beyond the end"):
            fastdump.open(path)
    (tmp_path / f"1_mem_{2**64 - PAGE:x}.bin").write_bytes(bytes(PAGE))
    with pytest.raises(CorruptDump, match="beyond the end"):
        fastdump.open(tmp_path)
