"""Fuzz the reader of LZ4 frames, their seek table and manifest."""

from __future__ import annotations

from harness import Bytes, Lost, fastdump, run


def target(data: bytes) -> None:
    frames = fastdump.frames.Frames(Bytes(data), "frames")
    length = min(frames.size, 64 << 20)
    assert length == sum(
        part.length if isinstance(part, Lost) else len(part) for part in frames.parts(0, length)
    )
    for number in range(min(frames.count, 100)):
        start = frames.index.starts[number]
        one = frames.read(start, frames.index.starts[number + 1] - start)
        content = frames.unpack(number)
        assert one == (b"" if isinstance(content, Lost) else content)


if __name__ == "__main__":
    run(target)
