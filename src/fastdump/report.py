"""Report: what fills a source as one HTML page, for a browser without a network.

Text of the target lies in the page as JSON only; the script of the page makes text nodes of it,
never markup. A policy (CSP) in the page forbids every request and every script but ours.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any, NamedTuple

from fastdump._words import PAGE_CLASSES, Cell
from fastdump.addresses import short_name
from fastdump.errors import UsageError
from fastdump.labels import Kind
from fastdump.ledger import resident
from fastdump.source import Source
from fastdump.text import cut
from fastdump.why import Why

try:
    from plotly.offline import get_plotlyjs
except ImportError:
    raise UsageError("Plotly is not installed", "pip install plotly") from None

MOST_REGIONS = 100_000  # in the table; the rest is summed
MOST_STRIPS = 1500  # of the picture of addresses: a pixel or so each
_MOST_TEXT = 200
_KINDS = list(Kind)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}


class _Row(NamedTuple):
    """A region. Bytes."""

    start: int
    length: int
    resident: int
    perms: str
    kind: int
    path: str


def report(source: Source, found: Why) -> bytes:
    """The page of a source, by what :func:`fastdump.why.why` has found of it.

    It has at most 65,536 cells and 100,000 regions, whatever the size of the source.
    """
    ours = resources.files("fastdump")
    scripts = {
        # As a browser reads it: what the policy's hash is of.
        "plotly": get_plotlyjs().replace("\r\n", "\n"),
        "script": (ours / "report.js").read_text(),
    }
    hashes = (hashlib.sha256(script.encode()).digest() for script in scripts.values())
    parts = {
        **scripts,
        "hashes": " ".join(f"'sha256-{base64.b64encode(h).decode()}'" for h in hashes),
        "title": html.escape(_text(found.name)),
        "data": _json(_data(source, found)),
    }
    page = (ours / "report.html").read_text()
    # In one pass: no part is looked through for the marks of another.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], page).encode()


def _json(data: Any) -> str:
    """JSON that cannot end the element which it lies in: without ``<``, and ASCII."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _text(text: str) -> str:
    return cut(text, _MOST_TEXT)


def _data(source: Source, found: Why) -> dict[str, Any]:
    """All that the page shows; its script says how."""
    rows = [
        _Row(region.start, region.length, length, region.perms, _NUMBERS[label.kind], path)
        for region, label, length in zip(
            source.regions, source.labels, resident(source), strict=True
        )
        for path in [region.path or (f".bss of {label.module}" if label.module else "")]
    ]
    return {
        "name": _text(found.name),
        "live": source.format == "process",
        "total": found.total,
        "rss": found.rss,
        "live_bytes": found.live_bytes,
        "ledger": [[bucket.name, bucket.bytes] for bucket in found.ledger],
        "kinds": [kind.value for kind in _KINDS],
        "classes": PAGE_CLASSES,
        "cells": _cells(rows, found.cells, found.cell_size),
        "strips": _strips(rows),
        "regions": _regions(rows),
        "modules": [
            {"path": _text(m.path), "chunks": m.chunks, "bytes": m.bytes} for m in found.modules
        ],
        "types": [
            asdict(t) | {"name": _text(t.name), "module": _text(short_name(t.module))}
            for t in found.types
        ],
        "templates": [asdict(t) | {"text": _text(t.text)} for t in found.templates],
        "text_title": found.text_title,
        "suspects": [[_text(s.text), _text(s.command)] for s in found.suspects],
        "problems": [_text(problem) for problem in found.problems]
        + [_text(f"{g.start:x}-{g.end:x}: {g.reason}") for g in found.unexpected_gaps[:20]],
    }


def _cells(rows: Sequence[_Row], cells: Sequence[Cell], size: int) -> dict[str, Any]:
    """The memory that was read, in cells of equal size: columns; addresses are text (64 bits)."""
    starts = [row.start for row in rows]
    owners = [max(bisect.bisect_right(starts, cell.address) - 1, 0) for cell in cells]
    return {
        "size": size,
        "start": [f"{cell.address:x}" for cell in cells],
        "kind": [rows[number].kind for number in owners],
        "pages": [cell.pages for cell in cells],
    }


def _strips(rows: Sequence[_Row]) -> list[list[Any]]:
    """Neighbouring regions, as many in each strip as it takes: start, end, regions, bytes,
    resident, the kind that has most of it, width, path of a single one.

    The width is logarithmic: beside a reservation of 2 TB nothing else could be seen.
    """
    step = -(-len(rows) // MOST_STRIPS) or 1
    found: list[list[Any]] = []
    for first in range(0, len(rows), step):
        group = rows[first : first + step]
        length = sum(row.length for row in group)
        kinds: dict[int, int] = {}
        for row in group:
            kinds[row.kind] = kinds.get(row.kind, 0) + row.length
        found.append(
            [
                f"{group[0].start:x}",
                f"{group[-1].start + group[-1].length:x}",
                len(group),
                length,
                sum(row.resident for row in group),
                max(kinds, key=lambda kind: kinds[kind]),
                round(math.log2(max(length >> 11, 2)), 2),
                _text(group[0].path) if len(group) == 1 else "",
            ]
        )
    return found


def _regions(rows: Sequence[_Row]) -> dict[str, Any]:
    """Those with the most resident bytes, in columns; and the sums of the rest."""
    ranked = sorted(rows, key=lambda row: (-row.resident, -row.length, row.start))
    shown, rest = ranked[:MOST_REGIONS], ranked[MOST_REGIONS:]
    paths: dict[str, int] = {}
    return {
        "start": [f"{row.start:x}" for row in shown],
        "end": [f"{row.start + row.length:x}" for row in shown],
        "length": [row.length for row in shown],
        "resident": [row.resident for row in shown],
        "perms": [row.perms for row in shown],
        "kind": [row.kind for row in shown],
        "path": [paths.setdefault(_text(row.path), len(paths)) for row in shown],
        "paths": list(paths),
        "rest": [len(rest), sum(r.length for r in rest), sum(r.resident for r in rest)],
    }
