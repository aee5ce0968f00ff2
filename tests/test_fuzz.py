"""Each fuzz target runs for a while, from seeds that are small dumps."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from test_corrupt import Seeds, packed, seeds  # noqa: F401
from test_sources import elf_core

pytest.importorskip("atheris", reason="atheris has no wheel for this Python")

FUZZ = Path(__file__).parent / "fuzz"
SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241128"))
# So many that each takes some seconds.
RUNS = {"elf": 1000, "frames": 3000, "manifest": 3000, "raw": 1000}


def corpus(found: Seeds, target: str) -> list[bytes]:
    """Inputs to begin with."""
    core = found["core"].read_bytes()
    manifest = json.loads((found["raw-lz4"] / "manifest.json").read_bytes())
    manifest["regions"] = [r for r in manifest["regions"] if r["files"]][:3]
    text = json.dumps(manifest, separators=(",", ":")).encode()
    small = elf_core([(0x1000, b"abcd" * 100, 0x1000), (0x3000, b"", 0x1000)])
    if target == "elf":
        return [small, core[:20_000], elf_core([(0x1000, b"x", 1)], wide=False, order=">")]
    if target == "frames":
        return [packed(small), found["lz4"].read_bytes()]
    if target == "manifest":
        return [text]
    files = [file for region in manifest["regions"] for file in region["files"]]
    contents = b"".join((found["raw-lz4"] / file["name"]).read_bytes() for file in files)
    return [struct.pack("<I", len(text)) + text + contents, bytes(4) + b"1_mem_1000.bin" * 9]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("target", "runs"),
    [*RUNS.items(), pytest.param("elf", 3000, marks=pytest.mark.long)],
)
def test_fuzz_target(seeds: Seeds, tmp_path: Path, target: str, runs: int) -> None:  # noqa: F811
    for number, content in enumerate(corpus(seeds, target)):
        (tmp_path / str(number)).write_bytes(content)
    # libFuzzer asks for the peak of getrusage(2), which exec keeps: here that of pytest, with a GB.
    options = [f"-runs={runs}", f"-seed={SEED}", "-timeout=30", "-rss_limit_mb=0"]
    result = subprocess.run(
        [sys.executable, FUZZ / f"fuzz_{target}.py", *options, "-max_len=65536", tmp_path],
        capture_output=True,
        cwd=tmp_path,
        timeout=280,
    )
    print(f"FASTDUMP_TEST_SEED={SEED}", os.fsdecode(result.stderr)[-3000:])
    assert result.returncode == 0
    assert b"Done " in result.stderr
