"""What is not walked or counted: allocators, by files, their symbols, and Go; interpreters."""

from __future__ import annotations

import re

from fastdump.errors import FaultError
from fastdump.labels import Kind
from fastdump.pointers import Pointers
from fastdump.source import Source

# By a part of the path of a file that is mapped.
_FILES = {
    "/libjemalloc": "jemalloc",
    "/libtcmalloc": "tcmalloc",
    "/libmimalloc": "mimalloc",
    "/ld-musl": "musl's malloc",
    "linux-musl/libc.so": "musl's malloc",
    "/libjvm.so": "a JVM",
    "/libcoreclr.so": ".NET",
    "/libnode.so": "V8",
}
# By a symbol that a program is linked with, one that it would not define itself.
_SYMBOLS = {
    "je_arena_boot": "jemalloc",
    "_rjem_je_arena_boot": "jemalloc",
    "_ZN8tcmalloc11ThreadCache10InitModuleEv": "tcmalloc",
    "_mi_malloc_generic": "mimalloc",
    "__simple_malloc": "musl's malloc",
    "_ZN2v87Isolate10GetCurrentEv": "V8",
}
# By the name of a file that is mapped: the program itself, or a library that another one has.
_INTERPRETER = re.compile(r"/(?:lib)?(pypy|ruby|perl|php|lua)[^/]*$")
_INTERPRETERS = {"pypy": "PyPy", "ruby": "Ruby", "perl": "Perl", "php": "PHP", "lua": "Lua"}
GO = "Go"
# runtime/debug: it begins the data of a program, stripped or not, at a multiple of 16.
_GO_MAGIC, _GO_WITHIN = b"\xff Go buildinf:", 1 << 16


def allocators(source: Source, pointers: Pointers) -> list[str]:
    """The names of those that are mapped or linked."""
    found = [
        name
        for part, name in _FILES.items()
        if any(part in label.module for label in source.labels)
    ]
    both = zip(source.regions, source.labels, strict=True)
    program = [region for region, label in both if label.kind is Kind.EXECUTABLE]
    for region in program:
        if region.writable and _has_go(source, region.start):
            found.append(GO)
    symbols = pointers.symbols_of(program[0].start) if program else None
    if symbols:
        found += [name for symbol, name in _SYMBOLS.items() if symbols.defines(symbol)]
    return list(dict.fromkeys(found))


def is_narrow(source: Source) -> bool:
    """Whether it is a program of 32 bits: any other one has its stack above 4 GiB."""
    both = zip(source.regions, source.labels, strict=True)
    return any(label.kind is Kind.STACK and region.end <= 1 << 32 for region, label in both)


def interpreters(source: Source) -> list[str]:
    """The names of those that are mapped, CPython excepted."""
    found = (_INTERPRETER.search(module) for module in {x.module for x in source.labels})
    return sorted({_INTERPRETERS[each[1]] for each in found if each})


def _has_go(source: Source, start: int) -> bool:
    buffer = bytearray(_GO_WITHIN)
    try:
        length = source.read_into(start, buffer)
    except FaultError:
        return False
    at = buffer.find(_GO_MAGIC, 0, length)
    return at >= 0 and at % 16 == 0
