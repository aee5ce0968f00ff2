"""Dump and scan the memory of a live Linux process, at the speed of memory."""

__version__ = "0.1.0"
