"""The ``fastdump`` command, and ``python -m fastdump``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run it. Half of the time of a short command goes by before it can handle an interrupt."""
    try:
        from fastdump.cli import main as run

        run()
    except KeyboardInterrupt:
        if sys.stderr:
            sys.stderr.write("fastdump: interrupted\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
