"""Swapped memory: read while there is room for it, left out else, as the options say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastdump.headroom
import targets
from fastdump.headroom import headroom
from test_formats import FORMATS_WITH_OUTPUT, Dump, run, run_well

SWAP_FILE_SIZE = 64 << 20
TARGET_SIZE = 16 << 20
# The command line of a host with this much memory left.
CRAMPED = """
import fastdump.survey, sys
fastdump.survey.headroom = lambda pid: 4096
from fastdump.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def _swap_file() -> Iterator[None]:
    """A swap file of ours is in use; on a disk, since tmpfs cannot swap to itself."""
    if os.geteuid() != 0 or not shutil.which("swapon"):
        pytest.skip("swapon needs root, and to be installed")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        file = Path(folder) / "swap"
        with open(file, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as opened:
            for _ in range(SWAP_FILE_SIZE >> 20):  # written: some file systems refuse holes
                opened.write(bytes(1 << 20))
        subprocess.run(["mkswap", file], check=True, capture_output=True)
        result = subprocess.run(["swapon", file], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"swapon is not possible here: {result.stderr.strip()}")
        try:
            yield
        finally:
            subprocess.run(["swapoff", file], check=True)


@pytest.fixture
def swapped(_swap_file: None) -> Iterator[targets.Target]:
    with targets.start("swapped", TARGET_SIZE) as target:
        target.stop()
        assert vm_swap(target.pid), "the kernel swapped nothing out"
        yield target


def vm_swap(pid: int) -> int:
    """VmSwap, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSwap:"))


def holds_all(found: Dump, target: targets.Target) -> bool:
    start, end, seed = (target.truth[key] for key in ("start", "end", "seed"))
    return found.read(start, end - start) == targets.pattern(start, end - start, seed)


def holds_all_but_the_gaps(found: Dump, target: targets.Target) -> bool:
    start, end, seed = (target.truth[key] for key in ("start", "end", "seed"))
    content = bytearray(targets.pattern(start, end - start, seed))
    for low, high, reason in found.gaps:
        if reason == "swapped" and start <= low < end:
            content[low - start : high - start] = bytes(high - low)
    return found.read(start, end - start) == content


def swapped_gaps(found: Dump) -> int:
    """Bytes left out because they were swapped."""
    return sum(end - start for start, end, reason in found.gaps if reason == "swapped")


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_swapped_memory_is_read_while_there_is_room(
    swapped: targets.Target, tmp_path: Path, format: str
) -> None:
    before = vm_swap(swapped.pid)
    found = run_well(swapped.pid, format, tmp_path)
    assert holds_all(found, swapped)
    assert found.report["swapped"] >= TARGET_SIZE // 4
    assert found.report["swapped"] <= before
    assert found.report["swapped_left_out"] is False
    assert found.report["headroom"] > found.report["swapped"]
    assert found.manifest["selection"]["swapped"] is True
    assert swapped_gaps(found) == 0


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_no_swap_leaves_swapped_memory_where_it_is(
    swapped: targets.Target, tmp_path: Path, format: str
) -> None:
    before = vm_swap(swapped.pid)
    found = run_well(swapped.pid, format, tmp_path, "--no-swap")
    assert vm_swap(swapped.pid) == before
    assert holds_all_but_the_gaps(found, swapped)
    assert swapped_gaps(found) == found.report["swapped"] == found.report["gaps"]["swapped"] > 0
    assert found.report["swapped_left_out"] is True
    assert found.manifest["selection"]["swapped"] is False
    totals = found.report["bytes"]
    assert totals["selected"] == sum(v for k, v in totals.items() if k != "selected")


def _cramped(pid: int, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = ["dump", str(pid), "--format", "core", "--output", str(output), *options]
    return subprocess.run(
        [sys.executable, "-c", CRAMPED, *words], capture_output=True, text=True, timeout=60
    )


def test_without_room_it_is_left_out_and_that_is_no_success(
    swapped: targets.Target, tmp_path: Path
) -> None:
    before = vm_swap(swapped.pid)
    result = _cramped(swapped.pid, tmp_path / "core")
    assert result.returncode == 3
    assert "swapped out, and left out" in result.stderr
    assert "--swap" in result.stderr
    assert "incomplete" in result.stderr
    assert vm_swap(swapped.pid) == before
    found = Dump("core", tmp_path / "core", 3, {}, "")
    assert swapped_gaps(found) > 0
    assert holds_all_but_the_gaps(found, swapped)


def test_no_swap_without_room_is_what_was_asked_for(
    swapped: targets.Target, tmp_path: Path
) -> None:
    result = _cramped(swapped.pid, tmp_path / "core", "--no-swap")
    assert (result.returncode, result.stderr) == (0, "")


def test_swap_reads_it_whether_there_is_room_or_not(
    swapped: targets.Target, tmp_path: Path
) -> None:
    result = _cramped(swapped.pid, tmp_path / "core", "--swap")
    assert (result.returncode, result.stderr) == (0, "")
    assert holds_all(Dump("core", tmp_path / "core", 0, {}, ""), swapped)


def test_plan_brings_nothing_back_when_it_is_to_be_left_out(
    swapped: targets.Target, tmp_path: Path
) -> None:
    before = vm_swap(swapped.pid)
    result = _cramped(swapped.pid, tmp_path / "core", "--plan", "--json")
    assert result.returncode == 0
    assert vm_swap(swapped.pid) == before
    assert '"read_swapped": false' in result.stdout


def test_swapped_memory_that_is_not_selected_does_not_matter(
    swapped: targets.Target, tmp_path: Path
) -> None:
    start, end = swapped.truth["start"], swapped.truth["end"]
    before = vm_swap(swapped.pid)
    found = run(swapped.pid, "core", tmp_path, "--exclude", f"{start:x}-{end:x}", "--no-swap")
    assert found.exit_code == 0
    assert vm_swap(swapped.pid) == before
    assert found.report["swapped"] < TARGET_SIZE // 4


SHARED_TARGET = """
import mmap, random, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size)
memory[:] = random.Random(1).randbytes(size)
memory.madvise(21)  # MADV_PAGEOUT
print("ready", flush=True)
sys.stdin.read()
"""


def swapped_and_shared(pid: int) -> int:
    """Bytes of its shared memory that are swapped out: proc_pid_smaps(5)."""
    found, shared = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Swap:") and shared:
            found += int(line.split()[1]) << 10
        elif not line.split()[0].endswith(":"):
            shared = "/dev/zero" in line
    return found


@pytest.mark.usefixtures("_swap_file")
def test_no_swap_leaves_shared_memory_swapped(tmp_path: Path) -> None:
    # Its swapped pages are in no page table: only the shared memory's own file knows them.
    command = [sys.executable, "-c", SHARED_TARGET, str(TARGET_SIZE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            before = swapped_and_shared(process.pid)
            assert before >= TARGET_SIZE // 4, "the kernel swapped nothing out"
            found = run(process.pid, "core", tmp_path, "--include", "shared memory", "--no-swap")
            assert swapped_and_shared(process.pid) > before // 2
            assert swapped_gaps(found) > before // 2
        finally:
            process.kill()


# ---- How much room there is.

MEMINFO = "MemTotal: 16000000 kB\nMemAvailable:    8000 kB\n"
V1_MOUNT = "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2_MOUNT = "31 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of its own for all that is asked about room; process 7 is in no cgroup yet."""
    read = fastdump.headroom._read
    monkeypatch.setattr(fastdump.headroom, "_read", lambda path: read(f"{tmp_path}{path}"))
    write(tmp_path / "proc/meminfo", MEMINFO)
    write(tmp_path / "proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    write(tmp_path / "proc/7/cgroup", "")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def v2_group(host: Path, path: str, limit: str, current: int, cached: int = 0) -> None:
    folder = host / "sys/fs/cgroup" / path
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{current}\n")
    used = "anon 1\nactive_file 10\ninactive_anon 100\n"
    write(folder / "memory.stat", f"{used}inactive_file {cached}\nslab_reclaimable {cached}\n")


def v1_group(host: Path, path: str, limit: int, usage: int, cached: int = 0) -> None:
    folder = host / "sys/fs/cgroup/memory" / path
    write(folder / "memory.limit_in_bytes", f"{limit}\n")
    write(folder / "memory.usage_in_bytes", f"{usage}\n")
    write(folder / "memory.stat", f"inactive_file 7\ntotal_inactive_file {cached}\n")


def use_v2(host: Path) -> None:
    write(host / "proc/self/mountinfo", V2_MOUNT)
    write(host / "proc/7/cgroup", "0::/slice/service\n")


def test_without_cgroups_the_host_counts(host: Path) -> None:
    assert headroom(7) == 8000 << 10


def test_cgroup_v2_limit_counts(host: Path) -> None:
    use_v2(host)
    v2_group(host, "slice/service", "1000000", 400000)
    assert headroom(7) == 600000


def test_the_limit_of_an_ancestor_counts(host: Path) -> None:
    use_v2(host)
    v2_group(host, "slice/service", "max", 400000)
    v2_group(host, "slice", "500000", 450000)
    assert headroom(7) == 50000


def test_no_limit_leaves_the_host(host: Path) -> None:
    use_v2(host)
    v2_group(host, "slice/service", "max", 400000)
    assert headroom(7) == 8000 << 10


def test_a_limit_above_what_the_host_has_does_not_count(host: Path) -> None:
    use_v2(host)
    v2_group(host, "slice/service", str(1 << 40), 0)
    assert headroom(7) == 8000 << 10


def test_cgroup_v1_limit_counts(host: Path) -> None:
    write(host / "proc/self/mountinfo", V1_MOUNT)
    write(host / "proc/7/cgroup", "4:memory:/docker/abc\n3:cpu,cpuacct:/\n0::/\n")
    v1_group(host, "docker/abc", 2000000, 1900000)
    v1_group(host, "", (1 << 63) - 4096, 5000000)
    assert headroom(7) == 100000


def test_v1_and_v2_together(host: Path) -> None:
    mounts = V1_MOUNT + V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    write(host / "proc/self/mountinfo", mounts)
    write(host / "proc/7/cgroup", "4:cpu,memory:/job\n0::/other\n")
    v1_group(host, "job", 2000000, 1000000)
    assert headroom(7) == 1000000


def test_a_container_sees_its_own_group_at_the_mount(host: Path) -> None:
    # Of cgroup v1 without a namespace: the path is the host's, the mount is the container's.
    write(host / "proc/self/mountinfo", V1_MOUNT.replace(" / /sys", " /docker/abc /sys"))
    write(host / "proc/7/cgroup", "4:memory:/docker/abc\n")
    v1_group(host, "", 3000000, 1000000)
    assert headroom(7) == 2000000


def test_a_group_above_its_limit_has_no_room(host: Path) -> None:
    use_v2(host)
    v2_group(host, "slice/service", "1000", 5000)
    assert headroom(7) < 0


def test_cached_files_are_room(host: Path) -> None:
    """Else a service whose cgroup is full of them could never be copied."""
    use_v2(host)
    v2_group(host, "slice/service", "1000000", 990000, cached=200000)
    assert headroom(7) == 10000 + 2 * 200000
    write(host / "proc/self/mountinfo", V1_MOUNT)
    write(host / "proc/7/cgroup", "4:memory:/job\n")
    v1_group(host, "job", 2000000, 1990000, cached=300000)
    assert headroom(7) == 10000 + 300000


@pytest.mark.parametrize("name", [b"\xff", "\u2028".encode(), b"\f\v\x1c", b"a - b"], ids=repr)
def test_names_of_other_mounts_and_groups_do_not_matter(host: Path, name: bytes) -> None:
    mount = b"32 24 0:28 / /home/mallory/%b rw - fuse.%b %b rw\n" % (name, name, name)
    (host / "proc/self/mountinfo").write_bytes(mount + V2_MOUNT.encode())
    (host / "proc/7/cgroup").write_bytes(b"1:name=%b:/%b\n0::/%b\n" % (name, name, name))
    v2_group(host, os.fsdecode(name), "1000000", 400000)
    assert headroom(7) == 600000


def test_without_any_cgroup_the_host_counts(host: Path) -> None:
    """The kernel has none, or the process has exited meanwhile."""
    (host / "proc/7/cgroup").unlink()
    assert headroom(7) == 8000 << 10


def test_this_process_has_some_room() -> None:
    assert 0 < headroom(os.getpid()) < 1 << 60
