"""Selection: presets and rules. Pure, so that every case is a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdump._native import MEM_ONLY, MODIFIED, NO_FILE, PAGE_SIZE, SWAPPED
from fastdump.errors import UsageError
from fastdump.labels import Kind, Label
from fastdump.region import Region
from fastdump.selection import (
    Choice,
    Part,
    Preset,
    Rule,
    matches,
    parse_addresses,
    select,
    slices_of,
)

A = 0x7F0000000000


def region(
    perms: str = "rw-p", path: str = "", inode: int = 0, start: int = A, pages: int = 4
) -> Region:
    return Region(start, start + pages * PAGE_SIZE, perms, 0, "fe:00", inode, path)


LIBRARY = Label(Kind.LIBRARY, "/usr/lib/libx.so.1")
LOST = Label(Kind.LIBRARY, "/memfd:jit (deleted)", lost=True)
EXECUTABLE = Label(Kind.EXECUTABLE, "/usr/bin/app")
ANON = Label(Kind.ANONYMOUS)
FILE = Label(Kind.FILE)
SHARED = Label(Kind.SHARED)
DEVICE = Label(Kind.DEVICE)
KERNEL = Label(Kind.KERNEL)


@pytest.mark.parametrize(
    ("perms", "path", "label", "data", "debugger", "everything"),
    [
        ("rw-p", "", ANON, "all", "all", "all"),
        ("rwxp", "", ANON, "all", "all", "all"),
        ("-w-p", "", ANON, "all", "all", "all"),
        ("r-xp", "", ANON, "none", "all", "all"),
        ("---p", "", ANON, "none", "all", "all"),
        ("rw-p", "[heap]", Label(Kind.HEAP), "all", "all", "all"),
        ("rw-p", "[stack]", Label(Kind.STACK), "all", "all", "all"),
        ("rw-p", "", LIBRARY, "none", "all", "all"),  # its .bss
        ("rw-p", "/usr/lib/libx.so.1", LIBRARY, "none", "modified pages", "all"),
        ("r-xp", "/usr/lib/libx.so.1", LIBRARY, "none", "modified pages", "all"),
        ("r-xp", "/memfd:jit (deleted)", LOST, "none", "all", "all"),
        ("rw-p", "/usr/bin/app", EXECUTABLE, "all", "all", "all"),
        ("r--p", "/usr/bin/app", EXECUTABLE, "none", "modified pages", "all"),
        ("rw-p", "/home/jason/app", FILE, "all", "all", "all"),
        ("r--p", "/data.npy", FILE, "none", "modified pages", "all"),
        ("rw-s", "/data.db", FILE, "none", "none", "all"),
        ("rw-s", "/dev/zero (deleted)", SHARED, "none", "none", "all"),
        ("rw-s", "/dev/dri/card0", DEVICE, "none", "none", "none"),
        ("r-xp", "[vdso]", KERNEL, "none", "all", "all"),
        ("r--p", "[vvar]", KERNEL, "none", "none", "none"),
        ("--xp", "[vsyscall]", KERNEL, "none", "none", "none"),
    ],
)
def test_presets(
    perms: str, path: str, label: Label, data: str, debugger: str, everything: str
) -> None:
    r = region(perms, path, inode=7 if path.startswith("/") else 0)
    found = [
        select([r], [label], preset)[0].part.value
        for preset in (Preset.DATA, Preset.DEBUGGER, Preset.ALL)
    ]
    assert found == [data, debugger, everything]


def test_with_libraries_brings_their_writable_memory_in() -> None:
    regions = [region("rw-p", "/usr/lib/libx.so.1", 7), region(), region("r-xp", "/usr/l", 7)]
    labels = [LIBRARY, LIBRARY, LIBRARY]
    choices = select(regions, labels, Preset.DATA, with_libraries=True)
    assert [c.part for c in choices] == [Part.WHOLE, Part.WHOLE, Part.NONE]


def test_debuggers_get_the_first_page_of_each_module_once() -> None:
    regions = [region("r--p", "/l", 7), region("r-xp", "/l", 7), region("r--p", "/m", 8)]
    labels = [Label(Kind.LIBRARY, "/l"), Label(Kind.LIBRARY, "/l"), Label(Kind.LIBRARY, "/m")]
    assert [c.header for c in select(regions, labels, Preset.DEBUGGER)] == [True, False, True]


@pytest.mark.parametrize(
    ("pattern", "does"),
    [
        ("rw-p", True),
        ("rw?p", True),
        ("????", True),
        ("r--p", False),
        ("library", True),
        ("heap", False),
        ("libx.so.1", True),
        ("libx*", True),
        ("LIBX*", False),
        ("/usr/lib/*", True),
        ("/usr/*", True),
        ("usr", False),
        ("/usr/lib/libx.so.?", True),
        (f"{A:x}-{A + 1:x}", True),
        (f"0x{A - 1:x}-0x{A + 1:X}", True),
        (f"{A - 99:x}-{A - 9:x}", False),
        ("1000-2000", False),
    ],
)
def test_patterns(pattern: str, does: bool) -> None:
    assert matches(pattern, region("rw-p", "/usr/lib/libx.so.1", 7), LIBRARY) is does


@pytest.mark.parametrize("name", ["[heap]", "[stack]", "[anon:cache]", "[anon:a*b]"])
def test_a_name_in_brackets_is_no_character_class(name: str) -> None:
    assert matches(name, region(path=name), ANON)
    assert not matches(name, region(path="h"), ANON)


def test_a_deleted_file_is_found_by_its_name() -> None:
    assert matches("gone.so", region(path="/x/gone.so (deleted)", inode=7), FILE)


def test_an_empty_address_range_is_an_error() -> None:
    with pytest.raises(UsageError):
        parse_addresses("2000-1000")


def test_the_last_rule_that_matches_wins() -> None:
    r, heap = region(path="[heap]"), Label(Kind.HEAP)
    out, back = Rule(False, "heap"), Rule(True, "rw-p")
    assert select([r], [heap], Preset.DATA, [out, back])[0].included
    last = select([r], [heap], Preset.DATA, [back, out])[0]
    assert (last.included, last.reason) == (False, "--exclude heap")


def test_rules_never_bring_devices_in() -> None:
    r = region("rw-s", "/dev/dri/card0", 7)
    assert not select([r], [DEVICE], Preset.ALL, [Rule(True, "device")])[0].included


def test_an_address_range_takes_its_pages_only() -> None:
    rules = [Rule(False, "*"), Rule(False, "????"), Rule(True, f"{A + 5000:x}-{A + 5001:x}")]
    choice = select([region()], [ANON], Preset.DATA, rules)[0]
    slices = slices_of(region(), choice, -1, swapped=False, userfault=False)
    assert [(s.address, s.length) for s in slices] == [(A + PAGE_SIZE, PAGE_SIZE)]


def test_an_excluded_address_range_splits_a_region() -> None:
    rule = Rule(False, f"{A + PAGE_SIZE:x}-{A + 2 * PAGE_SIZE:x}")
    choice = select([region()], [ANON], Preset.DATA, [rule])[0]
    slices = slices_of(region(), choice, -1, swapped=False, userfault=False)
    assert [(s.address - A, s.length, s.offset) for s in slices] == [
        (0, PAGE_SIZE, 0),
        (2 * PAGE_SIZE, 2 * PAGE_SIZE, 2 * PAGE_SIZE),
    ]


PIECES = st.lists(
    st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=5
)


@given(PIECES)
def test_address_rules_equal_a_page_by_page_decision(rules: list[tuple[bool, int, int]]) -> None:
    made = [
        Rule(include, f"{A + first * PAGE_SIZE:x}-{A + (first + count) * PAGE_SIZE:x}")
        for include, first, count in rules
    ]
    r = region(pages=10)
    choice = select([r], [ANON], Preset.DATA, made)[0]
    pages = {
        s.address + i
        for s in slices_of(r, choice, -1, swapped=False, userfault=False)
        for i in range(0, s.length, PAGE_SIZE)
    }
    expected = set()
    for page in range(10):
        chosen = True
        for include, first, count in rules:
            if first <= page < first + count:
                chosen = include
        if chosen:
            expected.add(A + page * PAGE_SIZE)
    assert pages == expected


def test_how_a_slice_is_read() -> None:
    whole = Choice(Part.WHOLE, "")
    (plain,) = slices_of(region(), whole, 5, swapped=True, userfault=False)
    assert (plain.flags, plain.file) == (SWAPPED, 5)
    (hidden,) = slices_of(region("---p"), whole, None, swapped=False, userfault=False)
    assert (hidden.flags, hidden.file) == (MEM_ONLY | NO_FILE, -1)
    (slow,) = slices_of(region(), whole, -1, swapped=False, userfault=True)
    assert slow.flags == MEM_ONLY
    header, rest = slices_of(
        region(), Choice(Part.MODIFIED, "", header=True), 5, swapped=False, userfault=False
    )
    assert (header.length, header.flags) == (PAGE_SIZE, 0)
    assert (rest.offset, rest.length, rest.flags) == (PAGE_SIZE, 3 * PAGE_SIZE, MODIFIED)
    assert not slices_of(region(), Choice(Part.NONE, ""), -1, swapped=False, userfault=False)
