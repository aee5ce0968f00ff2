"""Strings as Arrow columns, and as a Parquet file: with ``pip install fastdump[arrow]``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdump._strings import ENCODING_NAMES, Found, Row
from fastdump.errors import UsageError, output_failed
from fastdump.output import PartFile, uninterrupted
from fastdump.place import Place

try:
    import pyarrow as pa
    import pyarrow.parquet
except ImportError:
    raise UsageError("PyArrow is not installed", "pip install pyarrow") from None


def _schema(encodings: Sequence[str]) -> Any:
    # 8-bit text has no encoding that one could know.
    text = pa.binary() if "S" in encodings else pa.string()
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


def record_batch(
    place: Place, rows: Sequence[Row], text: bytes, encodings: Sequence[str] = ("S",)
) -> Any:
    """Rows, whose texts are in *text*, as a ``pyarrow.RecordBatch``.

    Text is a string; of 8-bit encodings, bytes.
    """
    schema = _schema(encodings)
    numbers = sorted({row.region for row in rows})
    at = {number: index for index, number in enumerate(numbers)}
    regions = [place.region_name(number).encode("utf-8", "replace").decode() for number in numbers]
    labels = [place.labels[number].kind.value for number in numbers]
    names = list(ENCODING_NAMES.values())

    def dictionary(indexes: list[int], values: list[str], kind: Any) -> Any:
        return pa.DictionaryArray.from_arrays(
            pa.array(indexes, kind), pa.array(values, pa.string())
        )

    return pa.record_batch(
        [
            pa.array([row.address for row in rows], pa.uint64()),
            pa.array([row.length for row in rows], pa.uint64()),
            pa.array([row.text(text) for row in rows], pa.binary()).cast(schema.field("text").type),
            dictionary([row.encoding for row in rows], names, pa.int8()),
            dictionary([at[row.region] for row in rows], regions, pa.int32()),
            dictionary([at[row.region] for row in rows], labels, pa.int32()),
        ],
        schema=schema,
    )


class ParquetOutput:
    """A Parquet file, which has its name once it is whole. A context manager.

    Raises:
        OutputFailed: It exists, or cannot be written; nothing is left then.
    """

    def __init__(self, path: str, force: bool, encodings: Sequence[str]) -> None:
        self._encodings = encodings
        self._path = path
        with uninterrupted():
            self._part = PartFile(Path(path), force)
        self._file = os.fdopen(os.dup(self._part.fd), "wb")
        self._writer = pyarrow.parquet.ParquetWriter(self._file, _schema(encodings))

    def __enter__(self) -> ParquetOutput:
        return self

    def write(self, place: Place, found: Found, rows: Sequence[Row]) -> None:
        """Append strings."""
        if not rows:
            return
        try:
            self._writer.write_batch(record_batch(place, rows, bytes(found.lines), self._encodings))
        except OSError as error:
            raise output_failed(self._path, error) from None

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._writer.close()
                self._file.close()
                self._part.commit()
        except OSError as error:
            raise output_failed(self._path, error) from None
        finally:
            self._part.abort()
