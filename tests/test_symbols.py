"""Symbols and names of types: of stripped files, and of what std::shared_ptr keeps."""

from __future__ import annotations

import errno
import io
import lzma
import os
import random
import shutil
import string
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

import targets
from fastdump._native import PAGE_SIZE, Gap
from fastdump.demangling import demangled
from fastdump.errors import FaultError
from fastdump.pointers import Pointers
from fastdump.region import Range
from fastdump.source import Source
from fastdump.sources import attach, open_source
from fastdump.symbols import Symbols
from fastdump.vtables import _Pages, _without_block
from fastdump.why import why
from test_real import child, stop

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241126"))
PROGRAM = """
#include <stdio.h>
__attribute__((noinline)) static int hidden(int n) { __asm__(""); return n + 1; }
int shown(int n) { return hidden(n) * 2; }
int main(int argc, char **argv) {
    (void)argv;
    puts("ready");
    fflush(stdout);
    getchar();
    return shown(argc);
}
"""

VIRTUAL = """
#include <cstdio>
namespace shop {
struct Circle { virtual ~Circle() {} virtual double area() const { return 1; } char label[48]; };
}
int main() {
    for (int i = 0; i < 1000; i++)
        if (!(new shop::Circle)->area())
            return 1;
    puts("ready");
    fflush(stdout);
    getchar();
}
"""


def pairs_of_rust(levels: int) -> str:
    """A name of types, each of which is two of the one before."""
    digits = string.digits + string.ascii_letters
    name, at = "INvC1a1fTllE", 8  # at: where the last type is; its number in base 62 is one less
    for _ in range(levels):
        reference = "B" + digits[(at - 1) // 62] * (at > 62) + digits[(at - 1) % 62] + "_"
        name, at = f"{name}T{reference * 2}E", len(name)
    return f"_R{name}E"


HOSTILE = [
    "_Z1f1A1BIS_S_E" + "".join(f"S0_IS{n}_S{n}_E" for n in "123456789ABCDEFGHIJKLMNOPQRSTU"),
    pairs_of_rust(30),
]
PRINTED = (
    "_RINvNtCsgEmfK2I1SDS_4core3ptr13drop_in_placeINtNtCslNYArtu3iFV_5alloc5boxed3BoxDG_INtNtNtB4_"
    "3ops8function5FnMutTRL0_eEEp6OutputbEL_EECslKGqiwnqz1t_17rustc_codegen_ssa"
)


def names(path: Path) -> dict[str, tuple[int, int]]:
    """What nm(1) says of functions: name -> address, size."""
    told = subprocess.run(["nm", "-S", path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in told.splitlines()]
    return {r[3]: (int(r[0], 16), int(r[1], 16)) for r in rows if len(r) == 4 and r[2] in "tT"}


def stripped(folder: Path) -> tuple[Path, Path]:
    """A program, and the same as distributions ship it: .gnu_debugdata for .symtab."""
    source, whole, packed = (folder / name for name in ("program.c", "whole", "packed"))
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-rdynamic", "-Wl,--build-id", "-o", whole, source], check=True)
    mini = folder / "mini"
    subprocess.run(["objcopy", "-S", "--keep-symbol=hidden", whole, mini], check=True)
    (folder / "mini.xz").write_bytes(lzma.compress(mini.read_bytes()))
    section = f".gnu_debugdata={folder}/mini.xz"
    subprocess.run(["objcopy", "-S", "--add-section", section, whole, packed], check=True)
    return whole, packed


def test_functions_are_named_by_mini_debug_info(tmp_path: Path) -> None:
    whole, packed = stripped(tmp_path)
    with open(packed, "rb") as file:
        symbols = Symbols(file)
    for name in ("hidden", "shown", "main"):  # .dynsym has the others
        value, size = names(whole)[name]
        assert symbols.at(value) == (name, 0)
        assert symbols.at(value + size - 1) == (name, size - 1)
        assert symbols.defines(name)


def test_what_a_file_defines_is_told_without_all_its_symbols(tmp_path: Path) -> None:
    """Whose millions would take seconds and hundreds of MB."""
    source, built, count = tmp_path / "many.c", tmp_path / "many.so", 20_000
    source.write_text("".join(f"int v{number};" for number in range(count)))
    subprocess.run(["gcc", "-shared", "-o", built, source], check=True)
    with open(built, "rb") as file:
        Symbols(file)  # imports
        tracemalloc.start()
        symbols = Symbols(file)
        assert not symbols.defines("je_arena_boot")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 100 * count
    assert symbols.defines("v19999")


def test_what_the_bytes_of_a_file_tell_is_what_its_tables_do(tmp_path: Path) -> None:
    whole, packed = stripped(tmp_path)
    for path, asked in ((whole, 1), (packed, 1), (whole, 100)):  # as often as to read the tables
        for name in ("hidden", "shown", "main"):
            value, _ = names(whole)[name]
            for vaddr, offset, prefix, wanted in (
                (value, 0, name[:3], name),
                (value + 1, 1, name, name),
                (value + 1, 0, name, ""),
                (value, 0, "_ZTV", ""),
                (value, 0, "puts", ""),
                (value, value + 1, name, ""),
                (value + (1 << 64), 0, name, ""),
            ):
                with open(path, "rb") as file:
                    symbols = Symbols(file)
                for _ in range(asked):
                    assert symbols.prefixed(vaddr, offset, prefix) == wanted


def test_a_file_that_cannot_be_read_has_no_symbols() -> None:
    class Failing(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    symbols = Symbols(Failing(Path(sys.executable).read_bytes()))
    assert symbols.at(0) is symbols.build_id is symbols.bias_of(0, 0) is None
    assert symbols.is_stripped
    assert not symbols.defines("main")
    assert not symbols.prefixed(16, 16, "main")


def test_a_page_that_needs_no_symbols_reads_no_tables() -> None:
    """They take longer to import and to read than all else of a page on a small process."""
    code = """if True:
        import sys
        from fastdump.sources import attach
        from fastdump.why import why
        with attach(int(sys.argv[1])) as source:
            page = why(source, strings=False)
        print("elftools" in sys.modules, any(found.language == "C++" for found in page.types))"""
    with targets.start("objects") as target:
        command = [sys.executable, "-c", code, str(target.pid)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True"]


def test_types_without_rtti_are_named_by_their_vtables(tmp_path: Path) -> None:
    source, built = tmp_path / "plain.cpp", tmp_path / "plain"
    source.write_text(VIRTUAL)
    for stripped, found in (False, ["shop::Circle"]), (True, []):
        flags = ["-O1", "-fno-rtti", *["-s"] * stripped]
        subprocess.run(["g++", *flags, "-o", built, source], check=True)
        with child(built, ready=b"ready") as process, attach(process.pid) as memory:
            page = why(memory, strings=False)
        own = [each for each in page.types if each.module == str(built)]
        assert [each.name for each in own] == found
        assert all(each.objects == 1000 for each in own)


def test_files_that_are_gone_or_replaced_are_not_mistaken(tmp_path: Path) -> None:
    """Of a process it is the file that is mapped; of a dump none but that of the same build."""
    whole, packed = stripped(tmp_path)
    value, _ = names(whole)["hidden"]
    program, dump = tmp_path / "program", tmp_path / "program.core"
    shutil.copy(packed, program)

    def symbol(source: Source) -> tuple[str, int] | None:
        base = next(r.start for r in source.regions if r.path.startswith(str(program)))
        return Pointers(source).symbol_at(base + value)

    with child(program, ready=b"ready") as process:
        command = ["dump", str(process.pid), "-q", "-f", "core", "--all", "-o", str(dump)]
        subprocess.run([sys.executable, "-m", "fastdump", *command], check=True)
        with open_source(str(dump)) as source:
            assert symbol(source) == ("hidden", 0)
        program.unlink()
        for content in (None, Path(sys.executable).read_bytes()):
            if content:
                program.write_bytes(content)
            with attach(process.pid) as source:
                assert symbol(source) == ("hidden", 0)
            with open_source(str(dump)) as source:
                assert symbol(source) is None


def test_broken_mini_debug_info_is_no_surprise(tmp_path: Path) -> None:
    print(f"FASTDUMP_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    whole, packed = stripped(tmp_path)
    data, section = bytearray(packed.read_bytes()), (tmp_path / "mini.xz").read_bytes()
    start = data.index(section)
    for _ in range(50):
        broken = bytearray(data)
        broken[start + rng.randrange(len(section))] ^= 1 << rng.randrange(8)
        (tmp_path / "broken").write_bytes(broken)
        with open(tmp_path / "broken", "rb") as file:
            found = Symbols(file).at(names(whole)["hidden"][0])
        assert found in (None, ("hidden", 0))


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_ZN4shop7counterEi", "shop::counter(int)"),
        ("_ZTVN4shop3BoxIiEE", "vtable for shop::Box<int>"),
        ("_ZN4core3ptr4read17h0123456789abcdefE", "core::ptr::read"),
        ("_RNvC6_123foo3bar", "123foo::bar"),
        ("malloc", "malloc"),
        ("i", "i"),  # as C++ a type, but C has it too
        ("_Z", "_Z"),
        ("_ZN4shop", "_ZN4shop"),
    ],
)
def test_symbols_are_written_as_people_do(symbol: str, name: str) -> None:
    assert demangled(symbol) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_would_not_end_stays(name: str) -> None:
    assert demangled(name) == name


def test_a_demangler_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Of a name that rustc has; it would be in the midst of JSON, and not escaped."""
    assert demangled(PRINTED) == PRINTED
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ("_Sp_counted_ptr_inplace<Session, std::allocator<void>, (_Lock_policy)2>", "Session"),
        ("_Sp_counted_ptr<shop::Map<int, a::B>*, (_Lock_policy)2>", "shop::Map<int, a::B>"),
        ("_Sp_counted_deleter<Session*, void (*)(Session*), A, (_Lock_policy)2>", "Session"),
        ("__1::__shared_ptr_emplace<Box<int (int, int)>, A>", "Box<int (int, int)>"),
        ("__1::__shared_ptr_pointer<Session*, D, A>", "Session"),
    ],
)
def test_control_blocks_are_of_their_object(block: str, name: str) -> None:
    assert _without_block(f"std::{block}") == f"{name} of a std::shared_ptr"


def test_pages_are_as_the_source_has_them(tmp_path: Path) -> None:
    """At the edges of regions and gaps; and where a dump is cut off within a page."""
    print(f"FASTDUMP_TEST_SEED={SEED}")
    dump, rng = tmp_path / "awkward.core", random.Random(SEED)
    with targets.start("awkward", tmp_path) as target:
        stop(target.process)
        command = ["dump", str(target.pid), "-q", "-f", "core", "-o", str(dump)]
        subprocess.run([sys.executable, "-m", "fastdump", *command], check=True)
        with attach(target.pid) as source:
            compare_pages(source, rng)
    os.truncate(dump, dump.stat().st_size * 3 // 4 + 100)
    with open_source(str(dump)) as source:
        assert any(start % PAGE_SIZE for start in compare_pages(source, rng))


def compare_pages(source: Source, rng: random.Random) -> list[int]:
    """Compare; returns where gaps begin."""
    pages, kinds, starts = _Pages(source), set(), []

    def text(address: int) -> bytes:
        buffer = bytearray(4096)
        return bytes(buffer[: source.read_into(address, buffer)])

    for region in source.regions:
        edges = [region.start, region.end]
        if region.length <= 4 << 20:
            parts = source.walk([Range(region.start, region.end)])
            gaps = [part.start for part in parts if isinstance(part, Gap)]
            starts += gaps
            edges += gaps[:10]
        for edge in edges:
            for length in (8, 16, 24, 32):
                address = edge - rng.randrange(2 * length)
                plain = outcome(source.read, address, length)
                assert outcome(pages.read, address, length) == plain
                kinds.add(type(plain))
                plain, found = outcome(text, address), outcome(pages.text, address)
                if isinstance(plain, bytes) and isinstance(found, bytes):
                    plain, found = plain.partition(b"\0")[:2], found.partition(b"\0")[:2]
                assert found == plain
    assert kinds == {bytes, str}
    return starts


def outcome(read: Callable[..., bytes], *place: int) -> object:
    """What is read, or the error."""
    try:
        return read(*place)
    except FaultError as error:
        return str(error)


@pytest.mark.parametrize("name", ["Session", "std::vector<int>", "std::_Sp_counted_ptr<broken"])
def test_other_names_stay(name: str) -> None:
    assert _without_block(name) == name
