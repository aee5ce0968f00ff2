"""The NEON and AVX-512 kernels against the scalar one, also where no CPU has them.

NEON is cross-compiled, and emulated by qemu-user; AVX-512 is compiled with its intrinsics in plain
C (SIMDe). What the scalar kernel finds is held against a plain loop, and against GNU strings, in
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
CSRC, KERNELS = ROOT / "csrc", ROOT / "tests/kernels"
FLAGS = ("-static", "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}")
BUILDS = {
    "O3": ("-O3",),  # as the extension is built,
    # such that a shift by too many, and the like, is a trap (SIMDe itself has some),
    "undefined": ("-O2", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
    "O1": ("-O1",),  # and where the compiler would need a minute
}
HERE = platform.machine()
SAMPLE, LONG = 1_500, 100_000


def neon(build: str, folder: Path) -> list[str]:
    compiler, emulator = program("gcc"), []
    if HERE != "aarch64":
        compiler, emulator = program("aarch64-linux-gnu-gcc"), [program("qemu-aarch64")]
    sources = [CSRC / name for name in ("scan_neon.c", "scan_scalar.c", "dispatch.c")]
    output = folder / "kernel_check"
    command = [compiler, *BUILDS[build], *FLAGS, *sources, KERNELS / "kernel_check.c"]
    subprocess.run([*command, "-o", output], check=True)
    return [*emulator, str(output)]


def avx512(build: str, folder: Path) -> list[str]:
    compiler, output = program("gcc"), folder / "kernel_check"
    # Whatever the CPU has; SIMDe has masks of other types than the compiler.
    own = "-Wno-sign-compare", "-Wno-psabi"
    plain = ["-isystem", KERNELS / "avx512", "-D__builtin_cpu_supports(feature)=1", *own]
    names = ("scan_avx512.c", "dispatch.c")
    subprocess.run(
        [compiler, *BUILDS[build], *FLAGS, *plain, "-c", *(CSRC / name for name in names)],
        check=True,
        cwd=folder,
    )
    objects = [folder / name.replace(".c", ".o") for name in names]
    sources = [CSRC / "scan_scalar.c", CSRC / "scan_avx2.c", KERNELS / "kernel_check.c"]
    subprocess.run([compiler, *BUILDS[build], *FLAGS, *objects, *sources, "-o", output], check=True)
    return [str(output)]


CHECKS = [(neon, "O3"), (neon, "undefined")]
if HERE == "x86_64":
    CHECKS.append((avx512, "O1"))


@pytest.fixture(scope="module", params=CHECKS, ids=lambda check: f"{check[0].__name__}-{check[1]}")
def kernel_check(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """A command that wants a seed and a number of cases."""
    compiled, build = request.param
    kernel = compiled.__name__
    return [*compiled(build, tmp_path_factory.mktemp(kernel)), kernel]


@pytest.mark.parametrize(
    ("seed", "cases"),
    [
        pytest.param(SEED, SAMPLE, id="sample"),
        *(pytest.param(SEED + i, LONG, id=f"long{i}", marks=pytest.mark.long) for i in range(1, 4)),
    ],
)
def test_a_kernel_finds_the_edges_of_the_scalar_one(
    kernel_check: list[str], seed: int, cases: int
) -> None:
    print(f"FASTDUMP_TEST_SEED={SEED}")
    done = subprocess.run([*kernel_check, str(seed), str(cases)], stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert f"\n{cases} cases, " in done.stdout
