"""The direction of imports, and who may import the extension."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "fastdump"
# Each file imports only from those before it (docs/architecture.md).
ORDER = [
    "text",
    "errors",
    "url",
    "region",
    "elf_header",
    "_native",
    "_strings",
    "_search",
    "expressions",
    "patterns",
    "_heap",
    "_objects",
    "_words",
    "_reach",
    "hexdump",
    "gaps",
    "headroom",
    "process",
    "fork_cost",
    "snapshot",
    "labels",
    "selection",
    "survey",
    "stream",
    "output",
    "crew",
    "turns",
    "storage",
    "remote",
    "remote_output",
    "outputs",
    "frames",
    "elf",
    "elfcore",
    "lz4core",
    "rawdump",
    "manifest",
    "plan",
    "dump",
    "place",
    "source",
    "dumped",
    "core_source",
    "raw_source",
    "live_source",
    "sources",
    "addresses",
    "demangling",
    "symbols",
    "debuginfod",
    "pointers",
    "allocators",
    "malloc_glibc",
    "modules",
    "ledger",
    "vtables",
    "cpython",
    "verify",
    "description",
    "extract",
    "parquet",
    "sweep",
    "string_search",
    "bench",
    "top",
    "why",
    "leaks",
    "growth",
    "report",
    "pprof",
    "matches",
    "memory_search",
    "yara",
    "api",
    "cli",
]


def imports_of(path: Path) -> set[str]:
    """The modules of fastdump that a file imports, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "fastdump":
                names = [f"fastdump.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("fastdump.")}
    return found - {"__version__"}


def test_every_file_has_its_place() -> None:
    files = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert files | {"cli"} == set(ORDER)


def test_imports_go_one_way() -> None:
    for index, name in enumerate(ORDER[:-1]):
        wrong = imports_of(SOURCE / f"{name}.py") - set(ORDER[:index]) - {"_fastdump"}
        assert not wrong, f"{name}.py imports {wrong}"


def test_one_file_imports_the_extension() -> None:
    assert [p.name for p in SOURCE.rglob("*.py") if "_fastdump" in imports_of(p)] == ["_native.py"]


def test_c_never_allocates_prints_or_includes_python() -> None:
    for path in (SOURCE.parent.parent / "csrc").glob("*.[ch]"):
        text = path.read_text()
        for word in ("malloc(", "calloc(", "realloc(", "printf(", "Python.h"):
            assert word not in text, f"{path.name}: {word}"
