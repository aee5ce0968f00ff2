"""Fuzz the reader of manifests."""

from __future__ import annotations

import itertools

from harness import fastdump, run


def target(data: bytes) -> None:
    manifest = fastdump.manifest.read_manifest(data)
    for ranges in ([r.region for r in manifest.regions], manifest.gaps):
        for one, other in itertools.pairwise(ranges):
            assert 0 <= one.start < one.end <= other.start < other.end <= 1 << 64
    for recorded in manifest.regions:
        for start, end in recorded.whole:
            assert recorded.region.start <= start < end <= recorded.region.end


if __name__ == "__main__":
    run(target)
