"""The rows of ``fastdump search``: live against reading alone, and on files against ripgrep.

Half of the patterns are cut from the image, so that they are found, the others are words like
those of a log. How often each is there is counted with ``bytes.find`` on one image and on the seam
of two.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import engines
from engines import Bench, Engine, Job, Sample, fastdump, run_command
from rows import GIB, Check, Floor, Need, Result, fresh_folder, interleave, program, speed_ratio
from strings_rows import KINDS, file_of, filled, image_of, peer, rated
from truth import WrongOutput

_MANY = 200
_SEED = 20240711
_MOST_FOUND = 50  # in an image: it is searching that is measured


def literals(image: bytes, count: int) -> list[str]:
    """Patterns of 8 to 20 bytes."""
    source = random.Random(_SEED)
    found: list[str] = []
    while len(found) < count:
        length = source.randrange(8, 21)
        if len(found) % 2:
            start = source.randrange(len(image) - length)
            part = image[start : start + length]
            if part.count(0) < length // 2 and 0 < _occurrences(image, part) <= _MOST_FOUND:
                found.append(f"hex:{part.hex()}")
                continue
        letters = source.choices("etaoinsrhldcumfpgwyb-_/=", k=length)
        found.append(f"text:{''.join(letters)}")
    return found


def _bytes_of(pattern: str) -> bytes:
    kind, _, rest = pattern.partition(":")
    return bytes.fromhex(rest) if kind == "hex" else rest.encode()


def _occurrences(data: bytes, pattern: bytes) -> int:
    """How often it is there, overlapping ones too; no more than are wanted to know."""
    count, at = 0, data.find(pattern)
    while at >= 0 and count <= _MOST_FOUND:
        count, at = count + 1, data.find(pattern, at + 1)
    return count


def expected_matches(image: bytes, patterns: Sequence[str], times: int) -> int:
    """In so many images one after the other."""
    total = 0
    for pattern in map(_bytes_of, patterns):
        seam = image[-len(pattern) + 1 :] + image[: len(pattern) - 1]
        total += times * _occurrences(image, pattern) + (times - 1) * _occurrences(seam, pattern)
    return total


def words(image: bytes, count: int) -> list[str]:
    """Text patterns that ripgrep takes too, a line each: half of them are in the image."""
    source = random.Random(_SEED)
    inside = sorted(set(re.findall(rb"[a-z0-9_/=-]{8,20}", image[: 4 << 20])))
    source.shuffle(inside)
    rare = (word.decode() for word in inside if _occurrences(image, word) <= _MOST_FOUND)
    found = list(itertools.islice(rare, count // 2))
    while len(found) < count:
        found.append("".join(source.choices("etaoinsrhldcumfpgwyb-_/=", k=source.randrange(8, 21))))
    return found


def run_search(bench: Bench, words: Sequence[str | Path], matches: int, length: int) -> Sample:
    """``fastdump search --count``; it must find as many."""
    script = '"$@" --count --stats 2>&1 || test $? = 1'
    done = run_command(("sh", "-c", script, "sh", bench.fastdump, "search", *words))
    found = re.search(r" in ([\d.]+) s: .*; ([\d,]+) matches", done.stdout)
    if not found or int(found[2].replace(",", "")) != matches:
        raise WrongOutput(f"fastdump search: {matches} matches expected: {done.stdout}")
    return Sample(done.seconds, float(found[1]), length)


def live(patterns: Path, matches: int) -> Callable[[Job], Sample]:
    """Of the filled memory of the target alone."""

    def run(job: Job) -> Sample:
        truth = job.subject.truth
        only = ("--exclude", "????", "--include", f"{truth.start:x}-{truth.end:x}")
        words = ("-f", patterns, *only, "--threads", str(job.bench.threads), str(job.subject.pid))
        return run_search(job.bench, words, matches, job.subject.length)

    return run


def _write(folder: Path, patterns: Sequence[str]) -> Path:
    path = folder / f"{len(patterns)}.patterns"
    path.write_text("\n".join(patterns) + "\n")
    return path


def rate_row(kind: str, bench: Bench) -> Result:
    """One literal and many against reading alone, with as many threads."""
    row = f"search-rate-{kind}"
    image = image_of(bench, kind).read_bytes()
    patterns = literals(image, _MANY)
    times = bench.size // len(image)
    with fresh_folder(bench.tmpfs) as folder, filled(bench, kind, bench.size) as subject:
        plan = [Engine("read only", fastdump("null"))]
        for some in (patterns[:1], patterns):
            found = expected_matches(image, some, times)
            plan.append(Engine(f"{len(some)} patterns", live(_write(folder, some), found)))
        timings = interleave(bench, row, plan, {"full": subject}, bench.tmpfs)
    read = timings["read only"]
    return Result(
        list(timings.values()),
        [
            Check(
                row,
                f"{name} against reading, work",
                speed_ratio(timings[name], [read], "work"),
                at_least=least,
            )
            for name, least in (("1 patterns", 0.7), (f"{_MANY} patterns", 0.25))
        ],
    )


def file_row(kind: str, bench: Bench) -> Result:
    """On a file in the page cache, against ripgrep, which counts lines (and maps the file)."""
    row = f"search-file-{kind}"
    image = image_of(bench, kind).read_bytes()
    patterns = words(image, _MANY)
    times = bench.size // len(image)
    with file_of(bench, kind, bench.size) as path, engines.small_subject() as subject:
        listed = _write(path.parent, patterns)
        plan = []
        for name, some, rg in (
            ("1 literal", patterns[:1], ("-e", patterns[0])),
            (f"{_MANY} literals", patterns, ("-f", listed)),
        ):
            found = expected_matches(image, [f"text:{word}" for word in some], times)
            options = ("-f", _write(path.parent, some), path)
            plan.append(Engine(f"fastdump, {name}", on_file(options, found, path)))
            plan.append(Engine(f"rg, {name}", peer(path, "rg", "-a", "-c", "-F", *map(str, rg))))
        timings = interleave(bench, row, plan, {"full": subject}, bench.tmpfs)
    return Result(
        list(timings.values()),
        [
            Check(
                row,
                f"{name} against rg -a -c -F, wall",
                speed_ratio(timings[f"fastdump, {name}"], [timings[f"rg, {name}"]], "wall"),
                at_least=least,
            )
            for name, least in (("1 literal", None), (f"{_MANY} literals", 3))
        ],
    )


def yara_row(bench: Bench) -> Result:
    """YARA rules of many strings against yara(1), which scans a live process too."""
    row, yara, size = "search-yara", program("yara"), min(bench.size, GIB)
    image = image_of(bench, "heap").read_bytes()
    patterns = words(image, _MANY)
    found = expected_matches(image, [f"text:{word}" for word in patterns], size // len(image))
    lines = [f'  $s{number} = "{word}"' for number, word in enumerate(patterns)]
    rule = "\n".join(["rule words {", " strings:", *lines, " condition: any of them", "}"])

    def rival(job: Job) -> Sample:
        """It reads libraries too, and finds some there: they are not counted."""
        done = run_command((yara, "-s", path, str(job.subject.pid)))
        truth = job.subject.truth
        places = (int(at, 16) for at in re.findall(r"^0x([0-9a-f]+):", done.stdout, re.MULTILINE))
        count = sum(truth.start <= at < truth.end for at in places)
        if count != found:
            raise WrongOutput(f"yara: {count} matches, not {found}")
        return Sample(done.seconds, done.seconds, job.subject.length)

    def own(job: Job) -> Sample:
        script = '"$1" search "$2" --yara "$3" | wc -l'
        command = ("sh", "-c", script, "sh", job.bench.fastdump, str(job.subject.pid), path)
        done = run_command(command)
        if int(done.stdout) != found:
            raise WrongOutput(f"fastdump search: {found} matches expected: {done.stdout}")
        return Sample(done.seconds, done.seconds, job.subject.length)

    with fresh_folder(bench.tmpfs) as folder, filled(bench, "heap", size) as subject:
        path = folder / "words.yar"
        path.write_text(rule)
        plan = (Engine("fastdump search --yara", own), Engine("yara", rival))
        floors = (Floor(("yara",), "wall", 1.2),)
        return rated(row, bench, plan, floors, subject)


def on_file(words: Sequence[str | Path], matches: int, path: Path) -> Callable[[Job], Sample]:
    return lambda job: run_search(job.bench, words, matches, path.stat().st_size)


SEARCH_ROWS: dict[str, Need] = {
    **{f"search-rate-{kind}": Need(partial(rate_row, kind), memory=1) for kind in KINDS},
    "search-yara": Need(yara_row, memory=1),
    "search-file-heap": Need(partial(file_row, "heap"), memory=1),
    "search-file-text": Need(partial(file_row, "text"), memory=1),
}
