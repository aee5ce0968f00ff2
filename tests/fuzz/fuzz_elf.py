"""Fuzz the reader of ELF cores."""

from __future__ import annotations

from harness import Bytes, fastdump, run, use


def target(data: bytes) -> None:
    with fastdump.core_source.ElfCore(Bytes(data), "core") as source:
        use(source)


if __name__ == "__main__":
    run(target)
