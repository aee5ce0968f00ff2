"""Strings as Arrow columns, and as a Parquet file: with PyArrow and NumPy (the extra ``arrow``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdump._strings import ENCODING_NAMES, Found, Row
from fastdump.errors import UsageError, output_failed
from fastdump.outputs import created, open_output
from fastdump.place import Place
from fastdump.stream import Sink

try:
    import numpy
    import pyarrow as pa
    import pyarrow.parquet
except ImportError:
    raise UsageError("NumPy or PyArrow is not installed", "pip install numpy pyarrow") from None


def _schema(encodings: Sequence[str]) -> Any:
    # Nobody knows the encoding of 8-bit text, and what strings(1) takes for UTF-8 may be none.
    text = pa.binary() if {"S", "U"} & set(encodings) else pa.string()
    name = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("address", pa.uint64()),
            ("length", pa.uint64()),
            ("text", text),
            ("encoding", pa.dictionary(pa.int8(), pa.string())),
            ("region", name),
            ("label", name),
        ]
    )


_COLUMNS = ["address", "length", "region", "encoding", "text", "text_length"]


def columns_of(records: bytes, base: int) -> Any:
    """``struct fastdump_record``s as a structured NumPy array; texts as from byte *base* on."""
    names = ["address", "length", "region", "encoding", "line", "text", "text_length", "end"]
    kinds = ["<u8", "<u8", "<u4", "<i4", "<u4", "<u4", "<u4", "<u4"]
    array = numpy.frombuffer(records, dtype=list(zip(names, kinds, strict=True))).copy()
    array["text"] -= base
    return array[_COLUMNS]


def record_batch(place: Place, columns: Any, text: bytes, encodings: Sequence[str]) -> Any:
    """Strings, whose texts are in *text*, as a ``pyarrow.RecordBatch``.

    Text is a string; of 8-bit encodings and UTF-8, bytes.
    """
    schema = _schema(encodings)
    numbers, at = numpy.unique(columns["region"], return_inverse=True)
    regions = [place.region_name(number).encode("utf-8", "replace").decode() for number in numbers]
    labels = [place.labels[number].kind.value for number in numbers]
    indexes = pa.array(at.astype("i4"))
    return pa.record_batch(
        [
            pa.array(numpy.ascontiguousarray(columns["address"])),
            pa.array(numpy.ascontiguousarray(columns["length"])),
            _texts(columns["text"], columns["text_length"], text).cast(schema.field("text").type),
            _dictionary(columns["encoding"].astype("i1"), list(ENCODING_NAMES.values())),
            pa.DictionaryArray.from_arrays(indexes, pa.array(regions, pa.string())),
            pa.DictionaryArray.from_arrays(indexes, pa.array(labels, pa.string())),
        ],
        schema=schema,
    )


def _dictionary(indexes: Any, values: Sequence[str]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(indexes), pa.array(values, pa.string()))


def _texts(start: Any, length: Any, text: bytes) -> Any:
    """The texts as binary: without a copy where they follow one another."""
    ends = start + length
    if len(start) and (start[1:] == ends[:-1]).all():
        offsets = numpy.append(start, ends[-1:]).astype("<i4")
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
        return pa.Array.from_buffers(pa.binary(), len(start), buffers)
    pairs = zip(start.tolist(), ends.tolist(), strict=True)
    return pa.array([text[a:b] for a, b in pairs], pa.binary())


class _File:
    """A sink as PyArrow wants it."""

    closed = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.flush = sink.flush

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sink.write(data)
        return len(data)

    def tell(self) -> int:
        return self._sink.length


class ParquetOutput:
    """A Parquet file, which has its name once it is whole. A context manager.

    Raises:
        OutputFailed: It exists, or cannot be written; nothing is left then.
    """

    def __init__(self, path: str, force: bool, encodings: Sequence[str]) -> None:
        self._encodings = encodings
        self._path = path
        with created(path):
            self._output = open_output(path, force)
        self._file = _File(self._output.stream())
        self._writer = pyarrow.parquet.ParquetWriter(self._file, _schema(encodings))

    def __enter__(self) -> ParquetOutput:
        return self

    def write(self, place: Place, found: Found, rows: Sequence[Row]) -> None:
        """Append strings: those of *found* that are among *rows*."""
        if not rows:
            return
        columns = numpy.array(
            [(r.address, r.length, r.region, r.encoding, r.at, r.text_length) for r in rows],
            dtype=list(zip(_COLUMNS, ("<u8", "<u8", "<u4", "<i4", "<u4", "<u4"), strict=True)),
        )
        batch = record_batch(place, columns, bytes(found.lines), self._encodings)
        try:
            self._writer.write_batch(batch)
        except OSError as error:
            raise output_failed(self._path, error) from None

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._writer.close()
                self._file.flush()
                self._output.commit()
        except OSError as error:
            raise output_failed(self._path, error) from None
        finally:
            self._output.abort()
