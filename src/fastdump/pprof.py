"""Profiles that pprof(1) reads: ``perftools.profiles.Profile``, gzipped.

Source: profile.proto of github.com/google/pprof. Of it a dozen fields are needed, all of them
numbers, texts or messages of these. They are written here: code that protoc generates is bound to
the version of its library, which would be a dependency for these lines.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable

from fastdump.text import printable
from fastdump.why import Stack

# Field numbers of Profile, Sample, Location, Line, Function and ValueType.
_SAMPLE_TYPE, _SAMPLE, _LOCATION, _FUNCTION, _STRING_TABLE = 1, 2, 4, 5, 6
_TIME_NANOS, _DEFAULT_SAMPLE_TYPE = 9, 14
_SAMPLE_LOCATION_ID, _SAMPLE_VALUE = 1, 2
_ID, _LOCATION_LINE, _LINE_FUNCTION_ID, _FUNCTION_NAME = 1, 4, 1, 2
_TYPE, _UNIT = 1, 2


def profile(stacks: Iterable[Stack], time: int) -> bytes:
    """A profile whose values are ``chunks`` and ``bytes``.

    Args:
        time: When it was made: nanoseconds of the epoch.
    """
    strings, functions = {"": 0}, dict[str, int]()

    def string(text: str) -> int:
        return strings.setdefault(text, len(strings))

    parts = [
        _message(_SAMPLE_TYPE, _number(_TYPE, string(kind)) + _number(_UNIT, string(unit)))
        for kind, unit in (("chunks", "count"), ("bytes", "bytes"))
    ]
    for frames, chunks, length in stacks:
        names = map(printable, reversed(frames))  # the leaf comes first
        ids = [functions.setdefault(name, len(functions) + 1) for name in names]
        sample = _packed(_SAMPLE_LOCATION_ID, ids) + _packed(_SAMPLE_VALUE, [chunks, length])
        parts.append(_message(_SAMPLE, sample))
    for name, number in functions.items():
        line = _message(_LOCATION_LINE, _number(_LINE_FUNCTION_ID, number))
        parts.append(_message(_LOCATION, _number(_ID, number) + line))
        function = _number(_ID, number) + _number(_FUNCTION_NAME, string(name))
        parts.append(_message(_FUNCTION, function))
    parts.append(_number(_TIME_NANOS, time) + _number(_DEFAULT_SAMPLE_TYPE, string("bytes")))
    parts += [_message(_STRING_TABLE, text.encode()) for text in strings]
    return gzip.compress(b"".join(parts), mtime=0)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    """Also of text, and of packed numbers."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _packed(field: int, values: Iterable[int]) -> bytes:
    return _message(field, b"".join(map(_varint, values)))
