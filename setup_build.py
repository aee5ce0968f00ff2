"""Build the C extension ``fastdump._fastdump`` with cffi (API mode, out of line, abi3).

The compiler and cffi read the same declarations, ``csrc/api.h``. Run by setuptools
through ``setup.py``; set ``FASTDUMP_WERROR=1`` (as CI does) to make warnings errors.
"""

import os
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.c"))
HEADERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.h"))

cflags = ["-O3", "-std=c11", "-fvisibility=hidden"]
if os.environ.get("FASTDUMP_WERROR"):
    # cffi's generated glue, not our sources, has unused parameters.
    cflags += ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-sign-compare"]

ffibuilder = FFI()
ffibuilder.cdef((ROOT / "csrc/api.h").read_text())
ffibuilder.set_source(
    "fastdump._fastdump",
    '#include "fastdump.h"',
    sources=SOURCES,
    depends=HEADERS,
    include_dirs=["csrc"],
    extra_compile_args=cflags,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
