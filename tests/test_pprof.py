"""Profiles for pprof, read back by protoc and, where Go is installed, by pprof itself; seeded."""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import targets
from fastdump.cli import cli
from fastdump.pprof import profile
from fastdump.text import printable
from fastdump.why import Stack
from test_real import program
from test_why import told

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241126"))
# What profile.proto says of the fields that are in use.
PROTO = """
syntax = "proto3";
package perftools.profiles;
message Profile {
  repeated ValueType sample_type = 1;
  repeated Sample sample = 2;
  repeated Location location = 4;
  repeated Function function = 5;
  repeated string string_table = 6;
  int64 time_nanos = 9;
  int64 default_sample_type = 14;
}
message ValueType { int64 type = 1; int64 unit = 2; }
message Sample { repeated uint64 location_id = 1; repeated int64 value = 2; }
message Location { uint64 id = 1; repeated Line line = 4; }
message Line { uint64 function_id = 1; }
message Function { uint64 id = 1; int64 name = 2; }
"""


def decoded(content: bytes, folder: Path) -> tuple[str, Counter[tuple[tuple[str, ...], str]]]:
    """What protoc says of the values, and samples: frames from the root on, and values."""
    (folder / "profile.proto").write_text(PROTO)
    command = ["protoc", "--decode=perftools.profiles.Profile", "--proto_path", folder]
    done = subprocess.run(
        [program("protoc"), *command[1:], "profile.proto"],
        input=gzip.decompress(content),
        capture_output=True,
        check=True,
    )
    text = done.stdout.decode()
    blocks = re.findall(r"^(\w+) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    strings = [
        each.encode().decode("unicode_escape").encode("latin-1").decode()
        for each in re.findall(r'^string_table: "(.*)"$', text, re.MULTILINE)
    ]

    def numbers(name: str, block: str) -> list[int]:
        return [int(n) for n in re.findall(rf"\b{name}: (\d+)", block)]

    functions = {
        numbers("id", block)[0]: strings[numbers("name", block)[0]]
        for kind, block in blocks
        if kind == "function"
    }
    locations = {
        numbers("id", block)[0]: functions[numbers("function_id", block)[0]]
        for kind, block in blocks
        if kind == "location"
    }
    samples = Counter(
        (
            tuple(locations[n] for n in reversed(numbers("location_id", block))),
            " ".join(map(str, numbers("value", block))),
        )
        for kind, block in blocks
        if kind == "sample"
    )
    types = " ".join(
        strings[numbers("type", block)[0]] + "/" + strings[numbers("unit", block)[0]]
        for kind, block in blocks
        if kind == "sample_type"
    )
    return types, samples


def test_protoc_reads_what_was_written(tmp_path: Path) -> None:
    print(f"FASTDUMP_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    names = ["app", "C++ T<int>", 'a "b" \\c', "größe", "33 to 64 bytes", "\x1b[31m", "x" * 300]
    stacks = [
        Stack(
            tuple(rng.choices(names, k=rng.randrange(1, 4))),
            rng.getrandbits(rng.choice((0, 7, 8, 40))),
            rng.getrandbits(rng.choice((0, 14, 15, 62))),
        )
        for _ in range(200)
    ]
    types, samples = decoded(profile(stacks, 1 << 60), tmp_path)
    assert types == "chunks/count bytes/bytes"
    assert samples == Counter(
        (tuple(map(printable, s.frames)), f"{s.chunks} {s.bytes}") for s in stacks
    )


def test_a_profile_is_the_page(tmp_path: Path) -> None:
    path = tmp_path / "page.pb.gz"
    with targets.start("objects") as target:
        command = ["why", str(target.pid), "--no-strings", "--pprof", str(path)]
        assert CliRunner().invoke(cli, command).exit_code == 0
        page = told(target.pid, strings=False)
    assert path.stat().st_mode & 0o777 == 0o600
    _, samples = decoded(path.read_bytes(), tmp_path)
    assert samples[("objects", "C++ shop::Circle", "65 to 128 bytes"), "20000 1600000"] == 1
    chunks = [values for frames, values in samples if len(frames) > 1]
    assert sum(int(values.split()[1]) for values in chunks) == page.live_bytes


def test_pprof_shows_what_grew(tmp_path: Path) -> None:
    go = shutil.which("go")
    if not go:
        pytest.skip("Go's pprof is not installed")  # 250 MB, so CI need not have it
    frames = ("app", "C++ Session", "65 to 128 bytes")
    for name, count in (("before", 1000), ("behind", 1500)):
        stacks = [Stack(frames, count, count * 100), Stack(("stacks",), 0, 5000)]
        (tmp_path / name).write_bytes(profile(stacks, 1 << 60))
    command = [go, "tool", "pprof", "-top", "-unit=B", "-diff_base", "before", "behind"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=5) for line in found.stdout.splitlines() if "%" in line]
    cumulative = {row[5]: row[3] for row in rows if len(row) == 6 and row[3].endswith("B")}
    assert cumulative == {frame: "50000B" for frame in frames}
