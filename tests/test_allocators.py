"""Other allocators than glibc's: recognised, and what is not known of them said."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fastdump.ledger import STACK, UNKNOWN
from fastdump.symbols import Symbols
from test_real import child, program
from test_why import told

C_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(void) {
    char **kept = calloc(50000, sizeof *kept);
    for (int i = 0; i < 50000; i++)
        memset(kept[i] = malloc(400), i, 400);
    free(kept[7]);
    puts("ready");
    fflush(stdout);
    getchar();
    return kept[8][0];
}
"""
GO_PROGRAM = """
package main

import (
	"fmt"
	"os"
)

var kept [][]byte

func main() {
	for i := 0; i < 50000; i++ {
		kept = append(kept, make([]byte, 400))
		kept[i][0] = 1
	}
	fmt.Println("ready")
	os.Stdin.Read(kept[0])
}
"""
HELD = 50_000 * 400


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("libjemalloc.so", "jemalloc"),
        ("libtcmalloc_minimal.so", "tcmalloc"),
        ("libmimalloc.so", "mimalloc"),
    ],
)
def test_allocators_that_are_loaded(library: str, name: str, tmp_path: Path) -> None:
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    path = next((line.split()[-1] for line in known.splitlines() if library in line), "")
    if not path:
        program(library)  # skips, or fails
    check(compiled("gcc", tmp_path), name, {"LD_PRELOAD": path})


def compiled(compiler: str, folder: Path, *options: str) -> Path:
    source, built = folder / "held.c", folder / "held"
    source.write_text(C_PROGRAM)
    subprocess.run([program(compiler), "-O1", *options, "-o", built, source], check=True)
    return built


def check(built: Path, name: str, environment: dict[str, str] | None = None) -> None:
    words = [f"{key}={value}" for key, value in (environment or {}).items()]
    with child("env", *words, built, ready=b"ready") as process:
        page = told(process.pid, strings=False)
    assert page.problems == [f"{name} is in use: which of its memory is free is not known"]
    assert page.heap is None
    buckets = {bucket.name: bucket.bytes for bucket in page.ledger}
    assert HELD < buckets[UNKNOWN] < 2 * HELD
    assert buckets[STACK] < 1 << 20


@pytest.mark.parametrize("options", [(), ("-static",)])
def test_musl(options: tuple[str, ...], tmp_path: Path) -> None:
    check(compiled("musl-gcc", tmp_path, *options), "musl's malloc")


@pytest.mark.parametrize("options", [(), ("-ldflags=-s",)])
def test_go_whose_heap_has_the_stacks(options: tuple[str, ...], tmp_path: Path) -> None:
    go = shutil.which("go")
    if not go:
        pytest.skip("Go is not installed")  # 250 MB, so CI need not have it
    (tmp_path / "held.go").write_text(GO_PROGRAM)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GO111MODULE": "off"}
    command = [go, "build", *options, "-o", "held", "held.go"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    check(tmp_path / "held", "Go")


def test_a_symbol_is_found_by_its_whole_name(tmp_path: Path) -> None:
    """A linker lets one name begin within another; a name that is only used is not defined."""
    source = tmp_path / "names.c"
    source.write_text("int my_name; int name; extern int used; int *at(void) { return &used; }")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "names.so", source], cwd=tmp_path, check=True)
    with open(tmp_path / "names.so", "rb") as file:
        symbols = Symbols(file)
    assert [symbols.defines(n) for n in ("my_name", "name", "ame", "used", "at")] == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_an_interpreter_whose_objects_are_not_counted() -> None:
    script = 'my @kept = map { { name => "row $_" } } 1 .. 20000; $| = 1; print "ready\n"; <STDIN>;'
    with child(program("perl"), "-e", script, ready=b"ready") as process:
        page = told(process.pid, strings=False)
    assert page.problems == ["Perl is in use: its objects are not counted"]
    assert page.types == []
