"""Records on disk: ArrayRecord files with TFDS metadata, read at any place.

Neither needs TensorFlow. The same records give the same bytes. Any program reads them
by `tfds.builder_from_directory(...).as_data_source(...)`; here they are encoded and
decoded by hand, since TFDS takes several times as long for it.
"""

import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

_VERSION = "1.0.0"
_FORMAT = "array_record"
# Records that are compressed, and read, together. Every call of the reader takes time
# by the number of groups: to read 64 of 700,000 single records took 7.9 ms, and 2.0 ms
# in groups of 16.
_GROUP = 16
# Records that are held at a time where all are read: one by one takes four times as
# long.
_AT_ONCE = 1000

Record = dict[str, Any]


def write(
    folder: pathlib.Path,
    name: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Iterable[Record]],
) -> None:
    """Writes records into `folder/name`, one after the other.

    Args:
      folder: in which the folder `name` is made.
      name: of the TFDS dataset.
      features: the TFDS feature of each field of a record.
      splits: split -> records, of texts, of arrays `[N]` of int32 or float32, and of
        numbers, which are read as arrays `[1]`. Splits without records are left out,
        as TFDS cannot have them.
    """
    home = folder / name / _VERSION
    home.mkdir(parents=True)
    infos = []
    for split, records in splits.items():
        files = _files(home, name, split)
        path = files.sharded_filepath(shard_index=0, num_shards=1)
        count, size = _write_file(path, records)
        if count:
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[count],
                    num_bytes=size,
                    filename_template=files,
                )
            )
        else:
            pathlib.Path(path).unlink()
    tfds.folder_dataset.write_metadata(
        data_dir=home,
        features=tfds.features.FeaturesDict(features),
        split_infos=infos,
        version=_VERSION,
        filename_template=_files(home, name, None),
        check_data=False,
        disable_shuffling=True,
    )


def _files(home: pathlib.Path, name: str, split: str | None):
    return tfds.core.ShardedFileTemplate(
        dataset_name=name, data_dir=home, split=split, filetype_suffix=_FORMAT
    )


def _write_file(path: Any, records: Iterable[Record]) -> tuple[int, int]:
    """Writes a file; returns the number of records and of their bytes."""
    count = size = 0
    writer = array_record_module.ArrayRecordWriter(str(path), f"group_size:{_GROUP}")
    try:
        for record in records:
            encoded = _encoded(record)
            writer.write(encoded)
            count, size = count + 1, size + len(encoded)
    finally:
        writer.close()
    return count, size


def _encoded(record: Record) -> bytes:
    """Returns the bytes that TFDS would write, with fields in a fixed order."""
    example = tf_example_pb2.Example()
    for name, value in record.items():
        field = example.features.feature[name]
        if isinstance(value, str):
            field.bytes_list.value.append(value.encode())
            continue
        array = np.atleast_1d(value)
        numbers = field.int64_list if array.dtype.kind == "i" else field.float_list
        numbers.SetInParent()  # An empty list has its type as well.
        numbers.value.extend(array.tolist())
    return example.SerializeToString(deterministic=True)


_DTYPES = {"int64_list": np.int32, "float_list": np.float32}


def _decoded(encoded: bytes, columns: Sequence[str] | None) -> Record:
    fields = tf_example_pb2.Example.FromString(encoded).features.feature
    names = list(fields) if columns is None else columns
    return {name: _value(fields[name]) for name in names}


def _value(field: Any) -> str | np.ndarray:
    kind = field.WhichOneof("kind")
    value = getattr(field, kind).value
    if kind == "bytes_list":
        return value[0].decode()
    return np.array(value, _DTYPES[kind])


class Source:
    """The records of one split on disk; threads may read at the same time.

    Its length is the number of records.
    """

    def __init__(self, folder: pathlib.Path, name: str, split: str):
        """Opens what `write` wrote; a split without records has length 0."""
        info = tfds.builder_from_directory(folder / name / _VERSION).info
        found = info.splits[split] if split in info.splits else None
        # Large datasets of older versions have several files.
        self._readers = [
            array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
            for path in (found.filepaths if found else ())
        ]
        self._ends = np.cumsum(found.shard_lengths if found else [], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(
        self, places: Sequence[int], columns: Sequence[str] | None = None
    ) -> list[Record]:
        """Reads some records, in the order of their places.

        Args:
          places: numbers of records, from 0 in the order written.
          columns: the fields that are wanted; by default all.
        """
        if not len(places):
            return []
        places = np.asarray(places)
        files = np.searchsorted(self._ends, places, side="right")
        records: list[Record] = [{}] * len(places)
        for file in np.unique(files).tolist():
            wanted = np.flatnonzero(files == file)
            first = self._ends[file - 1] if file else 0
            encoded = self._readers[file].read((places[wanted] - first).tolist())
            for place, each in zip(wanted.tolist(), encoded, strict=True):
                records[place] = _decoded(each, columns)
        return records

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[list[Record]]:
        """Reads all records in the order written, a thousand at a time."""
        for first in range(0, len(self), _AT_ONCE):
            stop = min(first + _AT_ONCE, len(self))
            yield self.read(range(first, stop), columns)


def read(folder: pathlib.Path, name: str, split: str) -> list[Record]:
    """Reads all records of a split in the order written; an empty split gives []."""
    return [record for part in Source(folder, name, split).parts() for record in part]
