"""``python -m fastdump`` is the ``fastdump`` command."""

from fastdump.cli import main

if __name__ == "__main__":
    main()
