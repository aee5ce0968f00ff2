"""The reader in docs/format.md, by which a stranger could write another, reads our dumps."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import fastdump
import targets
from fastdump.source import Chunk
from test_formats import run_well

DOCS = Path(__file__).parent.parent / "docs" / "format.md"


def test_the_documented_reader_reads_what_we_read(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 40
    reader = tmp_path / "reader.py"
    reader.write_text(code)
    with targets.start("threads", 2) as target:
        target.stop()
        dump = run_well(target.pid, "lz4", tmp_path).path
    seed = int(os.environ.get("FASTDUMP_TEST_SEED", "20241128"))
    print(f"FASTDUMP_TEST_SEED={seed}")
    rng = random.Random(seed)
    with fastdump.open(dump) as source:
        chunks = [(c.address, len(c.data)) for c in source.walk() if isinstance(c, Chunk)]
        for start, length in rng.sample(chunks, 8):
            address = start + rng.randrange(length - 64)
            result = subprocess.run(
                [sys.executable, reader, dump, f"{address:x}"], capture_output=True, check=True
            )
            assert result.stdout == source.read(address, 64)
