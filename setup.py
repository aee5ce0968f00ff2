"""Only what pyproject.toml cannot say: cffi's build hook is a setup() keyword."""

from setuptools import setup

setup(cffi_modules=["setup_build.py:ffibuilder"])
