"""1 GiB of random bytes, of text, and of zeros: byte for byte what GNU strings prints.

The seeded sample that runs always has 12 MiB: three pieces of the address space.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_real import ending

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241124"))
KINDS = ("random", "text", "zeros")
LENGTHS = (1, 2, 4, 8, 100)
SIZES = [pytest.param(12, id="12M"), pytest.param(1024, id="1G", marks=pytest.mark.long)]


def blocks(kind: str, size: int) -> Iterator[bytes]:
    """*size* MiB; text in lines of all lengths, some of them wide, none at a round place."""
    rng = random.Random(f"{SEED} {kind}")
    for _ in range(size):
        if kind == "zeros":
            yield bytes(1 << 20)
        elif kind == "random":
            yield rng.randbytes(1 << 20)
        else:
            lines = bytearray()
            while len(lines) < 1 << 20:
                words = rng.choices(
                    ("order", "42", "user@example.com", "\t", "-"), k=rng.randrange(30)
                )
                encoding = rng.choice(("ascii",) * 20 + ("utf-16-le", "utf-16-be", "utf-32-le"))
                lines += " ".join(words).encode(encoding) + b"\n"
            yield bytes(lines[: 1 << 20])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large")
    yield path
    for file in path.iterdir():
        file.unlink()


def file_of(folder: Path, kind: str, size: int) -> Path:
    path = folder / f"{kind}-{size}"
    if not path.exists():
        with path.open("wb") as file:
            file.writelines(blocks(kind, size))
    return path


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoding", ["s", "S", "l", "b", "L", "B"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_gnu_strings(folder: Path, kind: str, encoding: str, size: int) -> None:
    print(f"FASTDUMP_TEST_SEED={SEED}")
    path = file_of(folder, kind, size)
    for length in LENGTHS:
        words = ["-a", "-n", str(length), "-t", "x", "-e", encoding, str(path)]
        ours = [sys.executable, "-m", "fastdump", "strings", *words]
        with (
            ending("strings", *words, stdout=subprocess.PIPE) as theirs,
            ending(*ours, stdout=subprocess.PIPE) as found,
        ):
            assert theirs.stdout
            assert found.stdout
            command = [
                "cmp",
                f"/dev/fd/{theirs.stdout.fileno()}",
                f"/dev/fd/{found.stdout.fileno()}",
            ]
            fds = (theirs.stdout.fileno(), found.stdout.fileno())
            result = subprocess.run(command, pass_fds=fds, capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, ""), (length, result.stderr)
        assert (theirs.returncode, found.returncode) == (0, 0)
