"""The part of the C extension that counts objects of CPython: over ``csrc/api.h``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastdump._heap import Heap, set_windows
from fastdump._native import ffi, lib
from fastdump._strings import default_kernel, kernel_number
from fastdump.region import Range

SIZE_FIXED: int = lib.FASTDUMP_SIZE_FIXED
SIZE_VAR: int = lib.FASTDUMP_SIZE_VAR
SIZE_TAG: int = lib.FASTDUMP_SIZE_TAG
SIZE_STR: int = lib.FASTDUMP_SIZE_STR
SIZE_LIST: int = lib.FASTDUMP_SIZE_LIST
SIZE_SET: int = lib.FASTDUMP_SIZE_SET
SIZE_DICT: int = lib.FASTDUMP_SIZE_DICT
_MOST_PLACES = 1 << 18


class ObjectCount(NamedTuple):
    """Objects of one type of CPython; ``items`` of all of them, see ``csrc/api.h``.

    ``example`` is the address of one of them.
    """

    objects: int
    items: int
    example: int


class TypeCounter:
    """Counts the objects of CPython types in what it is fed.

    Args:
        types: Address → SIZE_FIXED, or how their items are counted.
        str_sizes: Of the smallest ASCII string, and of another one.
        dict_sizes: Of the header of a table, of each of its entries; of a value of a shared one.
        data: Where else pointers lead to: such a word is no reference count.
        keep: Remember where they are: the first 262,144.
        kernel: As of ``fastdump._strings.kernels``.
    """

    def __init__(
        self,
        types: Mapping[int, int],
        heap: Heap,
        str_sizes: tuple[int, int] = (0, 0),
        dict_sizes: tuple[int, int, int] = (0, 0, 0),
        data: Sequence[Range] = (),
        *,
        keep: bool = False,
        kernel: str = "",
    ) -> None:
        self._c = c = ffi.new("struct fastdump_types *")
        c.kernel = kernel_number(kernel or default_kernel())
        self._heap = heap
        c.heap = heap.c
        set_windows(c.windows, [*(Range(t, t + 1) for t in types), *data])
        capacity = 1 << (2 * len(types) + 1).bit_length()
        self._types = ffi.new("struct fastdump_type[]", capacity)
        c.types, c.capacity = self._types, capacity
        c.str_ascii, c.str_wide = str_sizes
        c.dict_header, c.dict_entry, c.dict_value = dict_sizes
        if keep:
            self._places = ffi.new("uint64_t[]", _MOST_PLACES)
            c.places, c.places_capacity = self._places, _MOST_PLACES
        for address, sizing in types.items():
            at = lib.fastdump_type_home(c, address)
            self._types[at].address, self._types[at].sizing = address, sizing

    def feed(self, address: int, data: Any) -> None:
        """Count the objects whose headers lie in *data*."""
        view = ffi.from_buffer(data)
        lib.fastdump_types_feed(self._c, view, len(view), address)

    @property
    def counts(self) -> dict[int, ObjectCount]:
        """By the address of their type."""
        return {
            t.address: ObjectCount(t.count, t.items, t.example) for t in self._types if t.address
        }

    @property
    def total(self) -> int:
        """All objects so far."""
        return int(self._c.total)

    @property
    def places(self) -> list[int]:
        """Where they are."""
        return list(self._c.places[0 : self._c.places_found]) if self._c.places else []
