"""What pyproject.toml cannot say: cffi's build hook, and manual pages, which are built too."""

import subprocess
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build


class BuildMan(Command):
    """The manual pages, of the modules that were built before."""

    description = "write the manual pages"
    user_options = ()

    def initialize_options(self):
        self.build_base = self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options(
            "build", ("build_base", "build_base"), ("build_lib", "build_lib")
        )

    def run(self):
        if not Path(self.build_lib, "fastdump/__init__.py").exists():
            return  # an editable install has no place for them
        folder = Path(self.build_base, "man")
        subprocess.run([sys.executable, "setup_man.py", self.build_lib, folder], check=True)
        pages = sorted(map(str, folder.glob("*.1")))
        self.distribution.data_files = [("share/man/man1", pages)]

    def get_source_files(self):
        return ["setup_man.py"]


build.sub_commands.append(("build_man", None))
setup(cffi_modules=["setup_build.py:ffibuilder"], cmdclass={"build_man": BuildMan})
