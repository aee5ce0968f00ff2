"""The rows of ``fastdump hexdump``: a live process against hexdump(1) on a file of its bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from engines import Bench, Engine, Job, Sample, run_command
from rows import Floor, Need, Result
from strings_rows import IMAGE_SIZE, file_of, filled, peer, rated


def live(job: Job) -> Sample:
    """``fastdump hexdump`` of the filled memory, its output into nothing."""
    truth = job.subject.truth
    addresses = f"{truth.start:x}-{truth.end:x}"
    script = 'exec "$1" hexdump "$2" "$3" > /dev/null'
    words = (job.bench.fastdump, str(job.subject.pid), addresses)
    done = run_command(("sh", "-c", script, "sh", *words))
    return Sample(done.seconds, done.seconds, job.subject.length)


def hexdump_row(kind: str, size: Callable[[Bench], int], at_least: float, bench: Bench) -> Result:
    """Line for line what hexdump(1) prints, but for the addresses."""
    length = size(bench)
    with file_of(bench, kind, length) as path, filled(bench, kind, length) as subject:
        truth = subject.truth
        addresses = f"{truth.start:x}-{truth.end:x}"
        script = (
            "without_addresses() { sed 's/^[0-9a-f]*//'; }; set -o pipefail; "
            'cmp <("$1" hexdump "$2" "$3" | without_addresses) '
            '<(hexdump -C "$4" | without_addresses)'
        )
        run_command(
            ("bash", "-c", script, "bash", bench.fastdump, str(subject.pid), addresses, path)
        )
        plan = (
            Engine("fastdump hexdump", live),
            Engine("hexdump -C", peer(path, "hexdump", "-C")),
        )
        floors = (Floor(("hexdump -C",), "wall", at_least),)
        return rated(f"hexdump-{kind}", bench, plan, floors, subject)


HEXDUMP_ROWS: dict[str, Need] = {
    "hexdump-random": Need(partial(hexdump_row, "random", lambda _: IMAGE_SIZE, 20)),
    "hexdump-zeros": Need(partial(hexdump_row, "zeros", lambda bench: bench.size, 5), memory=2),
}
