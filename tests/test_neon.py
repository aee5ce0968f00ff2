"""The NEON kernel against the scalar one; cross-compiled and emulated where no CPU has it.

What the scalar kernel finds is held against a plain loop, and against GNU strings, in
``test_kernels.py``.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from test_real import program

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20240501"))
ROOT = Path(__file__).resolve().parent.parent
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SOURCES = (
    *(ROOT / "csrc" / name for name in ("scan_neon.c", "scan_scalar.c", "dispatch.c")),
    ROOT / "tests/kernels/neon_check.c",
)
FLAGS = ("-static", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}")
# As the extension is built; and such that a shift by too many, and the like, is a trap.
BUILDS = {
    "O3": ("-O3",),
    "undefined": ("-O2", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
}
SAMPLE, LONG = 1_500, 100_000


@pytest.fixture(scope="module", params=list(BUILDS))
def neon_check(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """A command that wants a seed and a number of cases."""
    here = platform.machine() == "aarch64"
    compiler = program("gcc" if here else COMPILER)
    emulator = [] if here else [program(EMULATOR)]
    output = tmp_path_factory.mktemp("neon") / "neon_check"
    subprocess.run([compiler, *BUILDS[request.param], *FLAGS, *SOURCES, "-o", output], check=True)
    return [*emulator, str(output)]


@pytest.mark.parametrize(
    ("seed", "cases"),
    [
        pytest.param(SEED, SAMPLE, id="sample"),
        *(pytest.param(SEED + i, LONG, id=f"long{i}", marks=pytest.mark.long) for i in range(1, 4)),
    ],
)
def test_neon_finds_the_edges_of_the_scalar_kernel(
    neon_check: list[str], seed: int, cases: int
) -> None:
    print(f"FASTDUMP_TEST_SEED={SEED}")
    done = subprocess.run([*neon_check, str(seed), str(cases)], stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert f"\n{cases} cases, " in done.stdout
