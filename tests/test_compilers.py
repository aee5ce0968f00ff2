"""The C engine is built by other compilers than that of CI, without a warning, and is whole."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fastdump._native import lib

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("-O1", "-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare")  # of setup_build.py
SHARED = ("-fPIC", "-shared", "-Wl,-z,defs")


@pytest.mark.parametrize("compiler", ["clang", "musl-gcc", "aarch64-linux-gnu-gcc"])
def test_the_engine_is_built(compiler: str, tmp_path: Path) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    engine = tmp_path / "engine.so"
    sources = sorted((ROOT / "csrc").glob("*.c"))
    subprocess.run([compiler, *FLAGS, *SHARED, *sources, "-o", engine], check=True)
    symbols = subprocess.run(["nm", "-D", engine], check=True, stdout=subprocess.PIPE, text=True)
    found = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert {name for name in dir(lib) if callable(getattr(lib, name))} <= found
