"""The rows of contents: what a dump comes to by what the memory holds, and by the size of pages."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import engines
from engines import Bench, Engine, fastdump
from rows import GIB, Check, Need, Result, interleave, speed_ratio
from strings_rows import ROUNDS, image_of

# Kind of image, and options of fill.c.
CONTENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "heap": ("heap", ()),
    "heap-thp": ("heap", ("thp",)),
    "random": ("random", ()),
    "text": ("text", ()),
    "zeros": ("zeros", ()),
}
GCORE_TIMES = 1.2


def content_row(name: str, bench: Bench) -> Result:
    """``raw`` to memory, ``lz4`` into nothing, against gcore and the machine; 1 GiB."""
    row = f"content-{name}"
    kind, options = CONTENTS[name]
    bench = replace(bench, repeat=min(bench.repeat, ROUNDS), image=image_of(bench, kind))
    plan = (
        Engine("fastdump raw", fastdump("raw")),
        Engine("fastdump lz4, to /dev/null", engines.fastdump_to_nothing),
        Engine("bare memcpy", engines.bare_memcpy),
        Engine("bare copy", engines.bare_copy("copy")),
        Engine("gcore", engines.gcore()),
    )
    with bench.fill(min(bench.size, GIB), *options) as subject:
        timings = interleave(bench, row, plan, {"full": subject}, bench.tmpfs)
    raw, lz4, _, copy, gcore = timings.values()
    against_gcore = speed_ratio(raw, [gcore], "wall")
    ratio = lz4.samples[0].length / lz4.median("size")
    return Result(
        list(timings.values()),
        [
            Check(row, "raw against gcore, wall", against_gcore, at_least=GCORE_TIMES),
            Check(row, "raw against bare copy, work", speed_ratio(raw, [copy], "work")),
            Check(row, "lz4 against gcore, wall", speed_ratio(lz4, [gcore], "wall")),
            Check(row, "bytes of memory for each of lz4", ratio),
        ],
    )


CONTENT_ROWS: dict[str, Need] = {
    f"content-{name}": Need(partial(content_row, name), memory=2.2) for name in CONTENTS
}
