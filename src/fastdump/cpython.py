"""CPython from outside, 3.8 to 3.14: its types, and how many objects there are of each.

Without tables of versions: ``PyType_Type`` is the object that is its own type and is called "type";
a type is an object whose type is a metaclass. An object is a word that leads to a type, behind a
plausible reference count, in live memory. So what the garbage collector does not track counts too.

Source: CPython's Include/object.h, Include/cpython/object.h (struct _typeobject),
Include/internal/pycore_object.h and pycore_dict.h (what lies before and behind an instance),
Objects/dictobject.c (how tables grow).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from fastdump._heap import Heap, self_pointers
from fastdump._native import Gap
from fastdump._objects import (
    SIZE_DICT,
    SIZE_FIXED,
    SIZE_LIST,
    SIZE_SET,
    SIZE_STR,
    SIZE_TAG,
    SIZE_VAR,
    ObjectCount,
    TypeCounter,
)
from fastdump.errors import FaultError
from fastdump.labels import Kind
from fastdump.pointers import Pointers
from fastdump.region import Range
from fastdump.source import Chunk, Source

_PYTHON = re.compile(r"/(?:lib)?python[^/]*$")
_OB_TYPE = 8
# tp_name, tp_basicsize, tp_itemsize are at 24; tp_flags at 168.
_TYPE = struct.Struct("<QQQQqq120xQ")
_FREE_THREADED = 24  # where a build without GIL has ob_type
_HEAPTYPE, _READY, _HAVE_GC = 1 << 9, 1 << 12, 1 << 14
_LONG_SUBCLASS, _LIST_SUBCLASS, _DICT_SUBCLASS, _TYPE_SUBCLASS = 1 << 24, 1 << 25, 1 << 29, 1 << 31
# MANAGED_DICT, since 3.11, and MANAGED_WEAKREF, since 3.12.
_PREHEADER = 1 << 4 | 1 << 3
_INLINE_VALUES = 1 << 2  # since 3.13
_CACHED_KEYS = 880  # where a heap type of 3.13 or 3.14 has ht_cached_keys
_KEYS = struct.Struct("<16xqq")  # dk_usable, dk_nentries
_MOST_SHARED_KEYS = 30
_MOST_NAME = 256
_MOST_SIZE = 1 << 20
_GC_HEAD = 16
_PREHEADER_SIZE = 16
_ITEM_SIZES = {SIZE_LIST: 8, SIZE_SET: 16, SIZE_DICT: 1}
# The size of PyUnicodeObject → of PyASCIIObject, PyCompactUnicodeObject. Without wstr since 3.12.
_STR_SIZES = {64: (40, 56), 80: (48, 72)}
# Whether code has items, its instructions, as since 3.11 → the sizes of PyDictKeysObject, of an
# entry of it whose key is a str, and of a value in ma_values, which since then are an instance's.
_DICT_SIZES = {False: (40, 24, 8), True: (32, 16, 0)}


class PythonType(NamedTuple):
    """A type object. Bytes."""

    address: int
    name: str
    basicsize: int
    itemsize: int
    flags: int

    @property
    def own(self) -> bool:
        """Whether a class statement made it: types of C that are on the heap have a dotted name."""
        return bool(self.flags & _HEAPTYPE) and "." not in self.name


class Counted(NamedTuple):
    """The objects of a type; ``bytes`` are their own, with what lies before and behind them.

    A dict has the table that its items need, as if none had been deleted and all keys were str; one
    that instances share is left out. ``example`` is the address of one of them.
    """

    type: PythonType
    objects: int
    bytes: int
    example: int


class Interpreter:
    """The CPython of a source.

    Attributes:
        type_type: The address of PyType_Type.
        module: The path of the file that it lies in.
        unsupported: Why its objects cannot be counted; empty if they can.
    """

    def __init__(
        self,
        source: Source,
        pointers: Pointers,
        type_type: int,
        module: str,
        unsupported: str = "",
    ) -> None:
        self._source, self._pointers = source, pointers
        self.type_type, self.module, self.unsupported = type_type, module, unsupported
        self.types: dict[int, PythonType] = {}
        self._str_sizes, self._dict_sizes = _STR_SIZES[80], _DICT_SIZES[True]
        both = zip(source.regions, source.labels, strict=True)
        self._data = [Range(r.start, r.end) for r, x in both if r.writable and x.module == module]

    def metaclasses(self, heap: Heap) -> TypeCounter:
        """What is to be fed all memory, to find types; then :meth:`add_types`."""
        metas = [t.address for t in self.types.values() if t.flags & _TYPE_SUBCLASS]
        return TypeCounter(dict.fromkeys([self.type_type, *metas], SIZE_FIXED), heap, keep=True)

    def add_types(self, places: Iterable[int]) -> bool:
        """What lies there may be types; whether there is a metaclass among them that is new."""
        news = False
        for address in places:
            if address in self.types:
                continue
            found = self._type_at(address)
            if found:
                self.types[address] = found
                if self._sizing(found) == SIZE_STR:
                    self._str_sizes = _STR_SIZES[found.basicsize]
                if found.name == "code" and not found.flags & _HEAPTYPE:
                    self._dict_sizes = _DICT_SIZES[found.itemsize > 0]
                news |= bool(found.flags & _TYPE_SUBCLASS) and address != self.type_type
        return news

    def counter(self, heap: Heap) -> TypeCounter:
        """What is to be fed all memory, to count objects."""
        return TypeCounter(
            {t.address: self._sizing(t) for t in self.types.values()},
            heap,
            self._str_sizes,
            self._dict_sizes,
            self._data,
        )

    def counted(self, counts: dict[int, ObjectCount]) -> list[Counted]:
        """The types with objects, those that take the most bytes first."""
        found = []
        for address, (count, items, example) in counts.items():
            if count:
                size = self._bytes(self.types[address], count, items)
                found.append(Counted(self.types[address], count, size, example))
        return sorted(found, key=lambda c: (-c.bytes, c.type.name))

    def _bytes(self, python_type: PythonType, count: int, items: int) -> int:
        sizing = self._sizing(python_type)
        if sizing == SIZE_STR:
            return count * self._str_sizes[0] + items
        length = python_type.basicsize
        if python_type.flags & _HAVE_GC:
            length += _GC_HEAD
        if python_type.flags & _PREHEADER:
            length += _PREHEADER_SIZE
        if python_type.flags & _INLINE_VALUES:
            length += self._inline_values(python_type)
        return count * length + items * _ITEM_SIZES.get(sizing, python_type.itemsize)

    def _inline_values(self, python_type: PythonType) -> int:
        """As _PyInlineValuesSize(); it is more for the first 30 instances of a type."""
        try:
            keys = self._source.read(python_type.address + _CACHED_KEYS, 8)
            keys = self._source.read(int.from_bytes(keys, "little"), _KEYS.size)
        except FaultError:
            return 0
        usable, used = _KEYS.unpack(keys)
        capacity: int = usable + used
        if not 0 <= capacity <= _MOST_SHARED_KEYS:
            return 0
        return -(-capacity // 8) * 8 + (capacity + 1) * 8

    def _sizing(self, python_type: PythonType) -> int:
        flags = python_type.flags
        if not flags & _HEAPTYPE:
            if python_type.name == "str" and python_type.basicsize in _STR_SIZES:
                return SIZE_STR
            if python_type.name in ("set", "frozenset"):
                return SIZE_SET
        if flags & _LIST_SUBCLASS:
            return SIZE_LIST
        if flags & _DICT_SUBCLASS:
            return SIZE_DICT
        if not python_type.itemsize or flags & _TYPE_SUBCLASS:
            return SIZE_FIXED
        return SIZE_TAG if flags & _LONG_SUBCLASS and self._tagged else SIZE_VAR

    @property
    def _tagged(self) -> bool:
        """Whether int has its sign in its size: since 3.12, as str lost its wstr."""
        return self._str_sizes == _STR_SIZES[64]

    def _type_at(self, address: int) -> PythonType | None:
        try:
            found = _TYPE.unpack(self._source.read(address, _TYPE.size))
            _, _, _, name_at, basicsize, itemsize, flags = found
            if not flags & _READY or not 0 < basicsize < _MOST_SIZE:
                return None
            if not 0 <= itemsize < _MOST_SIZE:
                return None
            return PythonType(address, _text(self._pointers, name_at), basicsize, itemsize, flags)
        except FaultError:
            return None


def _text(pointers: Pointers, address: int) -> str:
    """The string that begins there, at most its first 256 bytes."""
    found = pointers.constant(address, _MOST_NAME)
    return found.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def find_cpython(source: Source, pointers: Pointers) -> Interpreter | None:
    """The CPython of a source, None if there is none.

    Raises:
        SourceGone: The target exited or called exec.
    """
    unread = ""
    for address, data, module in _module_data(source):
        if not data and _PYTHON.search(module):
            unread = module
        for offset, unsupported in (
            (_OB_TYPE, ""),
            (_FREE_THREADED, "it is a free-threaded build"),
        ):
            for at in self_pointers(data, address, -offset):
                found = at - offset
                name_at = found + offset + 16
                try:
                    name = pointers.constant(int.from_bytes(source.read(name_at, 8), "little"), 5)
                except FaultError:
                    unread = unread or (module if _PYTHON.search(module) else "")
                    continue
                if name == b"type\0":
                    return Interpreter(source, pointers, found, module, unsupported)
    if unread:
        return Interpreter(source, pointers, 0, unread, "its types could not be read")
    return None


def _module_data(source: Source) -> Iterator[tuple[int, bytes, str]]:
    """The writable data of the executable, and of what is called python or libpython: a program
    may be started by naming the loader. Of what cannot be read nothing.
    """
    both: Sequence[tuple[Range, str]] = [
        (Range(region.start, region.end), label.module)
        for region, label in zip(source.regions, source.labels, strict=True)
        if region.writable and (label.kind is Kind.EXECUTABLE or _PYTHON.search(label.module))
    ]
    for where, module in both:
        for part in source.walk([where]):
            if isinstance(part, Chunk):
                yield part.address, bytes(part.data), module
            elif isinstance(part, Gap):
                yield part.start, b"", module
