"""Records on disk, written by a TFDS builder as ArrayRecord and read through Grain.

Neither needs TensorFlow. The same records give the same bytes.
"""

import contextlib
import io
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.proto import tf_example_pb2

_VERSION = "1.0.0"

Record = dict[str, Any]


class _Writer(tfds.core.ExampleWriter):
    """Writes the fields of every record in one order, which else is left to chance."""

    def write(self, path, examples):
        def ordered():
            for key, serialized in examples:
                example = tf_example_pb2.Example.FromString(serialized)
                yield key, example.SerializeToString(deterministic=True)

        return super().write(path, ordered())


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes given records in their order."""

    VERSION = tfds.core.Version(_VERSION)
    # TFDS would look for checksums of downloads beside this file, by a package,
    # importlib_resources, which it does not install. There are none.
    code_path = None

    def __init__(
        self,
        name: str,
        features: tfds.features.FeaturesDict,
        splits: Mapping[str, Iterable[Record]],
        folder: pathlib.Path,
    ):
        self.name = name
        self._features = features
        self._splits = splits
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=self._features, disable_shuffling=True
        )

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _Writer(file_format=self.info.file_format)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # Nothing is downloaded.
        return {
            split: self._generate_examples(records)
            for split, records in self._splits.items()
        }

    def _generate_examples(
        self, records: Iterable[Record]
    ) -> Iterator[tuple[int, Record]]:
        yield from enumerate(records)


def write(
    folder: pathlib.Path,
    name: str,
    features: Mapping[str, Any],
    splits: Mapping[str, list[Record]],
) -> None:
    """Writes records into `folder/name`.

    Args:
      folder: in which the folder `name` is made.
      name: of the TFDS dataset.
      features: the TFDS feature of each field of a record.
      splits: split -> records; TFDS cannot write empty ones, so they are left out.
    """
    builder = _Builder(
        name,
        tfds.features.FeaturesDict(features),
        {split: records for split, records in splits.items() if records},
        folder,
    )
    with _quiet():
        builder.download_and_prepare()


class _Chunks:
    """Chunks of 1,000 records: reading one by one takes four times as long."""

    def __init__(self, source: Sequence[Record]):
        self._source = source

    def __len__(self) -> int:
        return -(-len(self._source) // 1000)

    def __getitem__(self, i: int) -> list[Record]:
        stop = min(1000 * (i + 1), len(self._source))
        return self._source.__getitems__(range(1000 * i, stop))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the messages of TFDS about downloads and shards."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def read(folder: pathlib.Path, name: str, split: str) -> list[Record]:
    """Reads all records of a split in the order written; an empty split gives []."""
    import grain  # It imports JAX, which takes a second and writing does not need.

    builder = tfds.builder_from_directory(folder / name / _VERSION)
    if split not in builder.info.splits:
        return []
    chunks = grain.MapDataset.source(_Chunks(builder.as_data_source(split)))
    return [record for i in range(len(chunks)) for record in chunks[i]]
