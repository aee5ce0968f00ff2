"""``fastdump strings --file-offsets``: where in the file of a dump each string lies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import targets
from fastdump._native import Slice
from fastdump.elf import EM_X86_64
from fastdump.elfcore import lay_out
from fastdump.region import Region
from test_formats import FORMATS_WITH_OUTPUT, run_well


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[targets.Target]:
    with targets.start("awkward", tmp_path_factory.mktemp("awkward")) as found:
        found.stop()
        yield found


@pytest.fixture(scope="module")
def dumps(target: targets.Target, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dumps")
    return {name: run_well(target.pid, name, folder).path for name in FORMATS_WITH_OUTPUT}


def strings(*words: str | Path, code: int = 0) -> list[tuple[int, bytes]]:
    result = subprocess.run(
        [sys.executable, "-m", "fastdump", "strings", *words], capture_output=True
    )
    assert result.returncode == code, result.stderr
    return parsed(result.stdout)


def parsed(output: bytes) -> list[tuple[int, bytes]]:
    lines = [line.lstrip(b" ").partition(b" ") for line in output.split(b"\n")[:-1]]
    return [(int(number, 16), text) for number, _, text in lines]


@pytest.mark.parametrize("options", [(), ("-e", "l", "-n", "2"), ("-n", "100")], ids=" ".join)
@pytest.mark.parametrize("format", ["core", "lz4"])
def test_of_a_core_the_file_has_each_string_there(
    dumps: dict[str, Path], format: str, options: tuple[str, ...]
) -> None:
    core = dumps["core"].read_bytes()
    found = strings("-t", "x", "--file-offsets", *options, dumps[format])
    assert [text for _, text in found] == [
        t for _, t in strings("-t", "x", *options, dumps["core"])
    ]
    for offset, text in found:
        wide = text.decode("latin-1").encode("utf-16-le") if "l" in options else text
        assert core[offset : offset + len(wide)] == wide
    assert found


def test_of_a_raw_dump_they_are_what_gnu_strings_prints_of_each_file(
    dumps: dict[str, Path],
) -> None:
    files = sorted(
        dumps["raw"].glob("*.bin"), key=lambda path: int(path.stem.split("_mem_")[1], 16)
    )
    expected = [
        line
        for file in files
        for line in parsed(
            subprocess.run(["strings", "-a", "-t", "x", file], capture_output=True).stdout
        )
    ]
    assert strings("-t", "x", "--file-offsets", dumps["raw"]) == expected
    assert len(files) > 5
    assert expected


def test_long_strings_have_their_offset_too(tmp_path: Path) -> None:
    """A string that is too long to be kept takes another way to its line."""
    region = Region(0x10000, 0x10000 + (1 << 20), "rw-p", 0, "00:00", 0, "")
    layout = lay_out(EM_X86_64, [region], [[Slice(region.start, region.length, 0)]], b"")
    core = tmp_path / "long.core"
    core.write_bytes(layout.header + b"\0\0\0" + b"x" * (region.length - 6) + b"\0\0\0")
    ((offset, text),) = strings("-t", "x", "--file-offsets", core)
    assert (offset, len(text)) == (len(layout.header) + 3, region.length - 6)
    ((address, _),) = strings("-t", "x", core)
    assert address == region.start + 3


def test_a_process_has_none(target: targets.Target) -> None:
    strings("--file-offsets", str(target.pid), code=2)
