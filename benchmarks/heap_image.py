"""Make a realistic heap image: the non-zero pages of a CPython process full of mixed objects.

    python benchmarks/heap_image.py IMAGE [--size 128MiB]

A child process builds what long-running services hold: parsed syntax trees, JSON-like records,
sessions with UUIDs and tokens, caches of rows, numbers, log lines, binary payloads. This program
then copies its private anonymous memory out of ``/proc/PID/mem`` with plain Python: nothing of
fastdump has a part in its own yardstick. Pages of zeros are left out, since an image is tiled
over gigabytes and the share of zero pages is what a benchmark row sets for itself.

The content is seeded, but addresses differ from run to run, so images are alike, not equal. What
LZ4 makes of the image is printed; a ratio of 3 to 5 is the region that real heaps were seen in.
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import os
import random
import re
import struct
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

PAGE = 4096
MIB = 1 << 20
DEFAULT_SIZE = 128 * MIB
SEED = 20240525
BUILD_OPTION = "--build"

VOCABULARY = """
    account address agent archive batch billing branch buffer bucket cache catalog channel
    client cluster commit config contract credit customer delivery deploy device discount
    document domain driver email entity error event export factory failure feature filter
    folder gateway handler header health history host image import index input invoice issue
    item journal key label latency ledger limit link listing locale location lookup merchant
    message metric mobile module monitor network node notice object offer operator order
    origin output owner package parcel partner payment pending period pipeline platform policy
    portal price priority product profile promise provider proxy quantity query queue rating
    reason record refund region release remote report request reserve resource response result
    retry return review route sample schedule schema score search section segment seller
    sensor server service session setting shipment signal source status storage stream subject
    summary supplier support survey switch symbol table target task tenant thread ticket token
    total trace tracking traffic transfer update upload usage user value vendor version
    volume wallet warehouse widget window worker workflow zone
"""
WORDS = VOCABULARY.split()


# --- the objects, each builder adding a few hundred KiB to a few MiB a step ---------------------


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def syntax_trees(rng: random.Random) -> Iterator[object]:
    """Parsed modules of the standard library: many small objects with many pointers."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    while True:
        rng.shuffle(paths)
        for path in paths:
            source = path.read_text("utf-8", "replace")
            yield ast.parse(source), source


def json_documents(rng: random.Random) -> Iterator[object]:
    """What json.loads leaves behind: dicts of strings, integers, floats, lists, None."""
    while True:
        documents = [
            {
                "id": rng.randrange(1 << 48),
                "name": sentence(rng, 2).title(),
                "email": f"{rng.choice(WORDS)}.{rng.randrange(99999)}@{rng.choice(WORDS)}.example",
                "created": f"2024-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
                f"T{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}Z",
                "position": [rng.uniform(-90, 90), rng.uniform(-180, 180)],
                "tags": rng.choices(WORDS, k=rng.randint(0, 5)),
                "description": sentence(rng, rng.randint(5, 40)),
                "items": [
                    {
                        "sku": f"{rng.choice(WORDS)[:3].upper()}-{rng.randrange(10**8):08}",
                        "quantity": rng.randint(1, 20),
                        "price": round(rng.lognormvariate(3, 1), 2),
                    }
                    for _ in range(rng.randint(1, 6))
                ],
                "parent": None,
                "active": rng.random() < 0.8,
            }
            for _ in range(200)
        ]
        yield json.loads(json.dumps(documents))


class Node:
    """A vertex of an object graph, as an ORM or a scheduler keeps millions of."""

    __slots__ = ("attributes", "children", "count", "kind", "name", "parent", "weight")

    def __init__(self, rng: random.Random, name: str, parent: Node | None) -> None:
        self.kind = rng.choice(WORDS)
        self.name = name
        self.parent = parent
        self.children: list[Node] = []
        self.attributes = {rng.choice(WORDS): rng.choice(WORDS) for _ in range(rng.randint(0, 4))}
        self.count = rng.randrange(5000)
        self.weight = rng.randrange(1000) / 8
        if parent:
            parent.children.append(self)


def object_graphs(rng: random.Random) -> Iterator[object]:
    """Objects that mostly point at each other and at shared strings."""
    while True:
        nodes = [Node(rng, "root", None)]
        for number in range(2000):
            nodes.append(Node(rng, f"node-{number}", rng.choice(nodes)))
        yield {node.name: node for node in nodes}


class Session:
    """A web session, as an ordinary object with a __dict__."""

    def __init__(self, rng: random.Random) -> None:
        self.key = uuid.UUID(int=rng.getrandbits(128))
        self.token = rng.randbytes(32).hex()
        self.csrf = base64.urlsafe_b64encode(rng.randbytes(24)).decode()
        self.user = rng.randrange(1 << 31)
        self.seen = 1_716_600_000 + rng.random() * 1e6
        self.path = f"/{rng.choice(WORDS)}/{rng.randrange(1 << 20)}?{rng.choice(WORDS)}=1"
        self.state = {rng.choice(WORDS): rng.randrange(1000) for _ in range(4)}


def sessions(rng: random.Random) -> Iterator[object]:
    while True:
        group = [Session(rng) for _ in range(500)]
        yield {str(session.key): session for session in group}


def table_rows(rng: random.Random) -> Iterator[object]:
    """Rows of a database driver: tuples of small values, columns of numbers."""
    while True:
        yield [
            (rng.randrange(10**6), round(rng.gauss(100, 15), 2), rng.choice(WORDS), None, True, i)
            for i in range(2000)
        ]
        yield [rng.random() for _ in range(2000)]
        yield [rng.randrange(10**9) for _ in range(2000)]
        yield {i: i * rng.randrange(1 << 20) for i in range(2000)}


def log_lines(rng: random.Random) -> Iterator[object]:
    levels = ("DEBUG", "INFO", "INFO", "INFO", "WARNING", "ERROR")
    while True:
        yield [
            f"2024-05-25 {i // 3600 % 24:02}:{i // 60 % 60:02}:{i % 60:02},{rng.randrange(1000):03}"
            f" {rng.choice(levels)} [{rng.choice(WORDS)}.{rng.choice(WORDS)}]"
            f" request {rng.getrandbits(64):016x} {sentence(rng, rng.randint(3, 15))}"
            for i in range(1000)
        ]


def payloads(rng: random.Random) -> Iterator[object]:
    """Bytes: encrypted or compressed bodies, encoded ones, text, records with padding."""
    while True:
        yield [rng.randbytes(rng.randint(500, 8000)) for _ in range(8)]
        yield sentence(rng, 4000).encode()
        yield base64.b64encode(rng.randbytes(20_000))
        yield bytearray().join(struct.pack("<QIf48x", i, i % 97, i / 16) for i in range(1000))


# How many steps each builder takes in a round.
MIX: tuple[tuple[Callable[[random.Random], Iterator[object]], int], ...] = (
    (syntax_trees, 2),
    (object_graphs, 2),
    (json_documents, 4),
    (sessions, 1),
    (table_rows, 3),
    (log_lines, 1),
    (payloads, 1),
)


def build_heap(size: int) -> None:
    """Build objects until *size* bytes are resident, say so, and wait for end of input."""
    rng = random.Random(SEED)
    streams = [(builder(rng), steps) for builder, steps in MIX]
    keep: list[object] = []
    for step in count(1):
        keep.append([list(islice(stream, steps)) for stream, steps in streams])
        if step % 5 == 0:  # a lived-in heap has holes
            del keep[rng.randrange(len(keep))]
        if resident_bytes() >= size:
            break
    print("ready", flush=True)
    sys.stdin.read()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


# --- reading it ---------------------------------------------------------------------------------


def anonymous_ranges(pid: int) -> list[tuple[int, int]]:
    """The private writable mappings of a process that no file lies behind."""
    line = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(\[heap\])?$")
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    matches = filter(None, map(line.match, lines))
    return [(int(match[1], 16), int(match[2], 16)) for match in matches]


def nonzero_pages(pid: int) -> Iterator[bytes]:
    zero = bytes(PAGE)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in anonymous_ranges(pid):
            for address in range(start, end, MIB):
                chunk = os.pread(memory.fileno(), min(MIB, end - address), address)
                for offset in range(0, len(chunk), PAGE):
                    page = chunk[offset : offset + PAGE]
                    if page != zero:
                        yield page


def make_image(path: Path, size: int = DEFAULT_SIZE) -> Path:
    """Write an image of *size* bytes to *path*, unless it is there already; return *path*."""
    if path.exists() and path.stat().st_size == size:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    builder = subprocess.Popen(
        [sys.executable, __file__, BUILD_OPTION, str(size * 6 // 5 + 32 * MIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with builder:
        assert builder.stdin
        assert builder.stdout
        if builder.stdout.readline() != "ready\n":
            raise RuntimeError("the process that builds the heap failed")
        with part.open("wb") as image:
            for page in islice(nonzero_pages(builder.pid), size // PAGE):
                image.write(page)
            written = image.tell()
        builder.stdin.close()
    if written != size:
        raise RuntimeError(f"only {written} of {size} bytes of the heap are not zero")
    part.rename(path)
    return path


# --- judging it ---------------------------------------------------------------------------------


def lz4_figures(path: Path) -> tuple[float, float]:
    """The ratio of LZ4 fast over blocks of 1 MiB, and its speed in GB/s on one core."""
    import lz4.block

    packed, seconds = 0, 0.0
    with path.open("rb") as image:
        for block in iter(lambda: image.read(MIB), b""):
            start = time.perf_counter()
            packed += len(lz4.block.compress(block, store_size=False))
            seconds += time.perf_counter() - start
    size = path.stat().st_size
    return size / packed, size / seconds / 1e9


def parse_size(text: str) -> int:
    """``4GiB``, ``128MiB``, ``64K`` or plain bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"not a size: {text!r}")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("image", nargs="?", type=Path)
    parser.add_argument("--size", type=parse_size, default=DEFAULT_SIZE)
    parser.add_argument(BUILD_OPTION, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build_heap(options.build)
        return
    if not options.image:
        parser.error("IMAGE is missing")
    path = make_image(options.image, options.size)
    ratio, speed = lz4_figures(path)
    print(f"{path}: {path.stat().st_size} bytes, LZ4 fast {ratio:.2f} : 1 at {speed:.2f} GB/s")


if __name__ == "__main__":
    main()
