"""Fuzz the reader of raw dumps: a manifest behind its length, and bytes for the files it names.

A length of 0 is a folder without a manifest: the names are then those in the bytes.
"""

from __future__ import annotations

import re
import struct
import tempfile
from pathlib import Path

from harness import fastdump, run, use

LocalFolder = fastdump.raw_source.LocalFolder
NAME = re.compile(rb"[0-9]{1,8}_mem_[0-9a-f]{1,16}\.bin(?:\.lz4)?")
MOST_FILES = 8


def fill(folder: Path, data: bytes) -> None:
    """Write the dump that *data* stands for."""
    (length,) = struct.unpack_from("<I", data.ljust(4, b"\0"))
    manifest, rest = data[4 : 4 + length], data[4 + length :]
    if length:
        (folder / "manifest.json").write_bytes(manifest)
    names = NAME.findall(manifest if length else rest[:1000])[:MOST_FILES]
    for number, name in enumerate(dict.fromkeys(names)):
        share = len(rest) // len(names)
        (folder / name.decode()).write_bytes(rest[number * share : (number + 1) * share])


def target(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), data)
        with fastdump.raw_source.RawDump(LocalFolder(folder), folder) as source:
            use(source)


if __name__ == "__main__":
    run(target)
