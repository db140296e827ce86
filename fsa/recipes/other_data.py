"""Evaluation of a run on a dataset that it was not trained on."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple, Self

from etils import epath

from fsa.errors import InputError
from fsa.evaluation import evaluation_file
from fsa.training import run_data


class OtherData(NamedTuple):
    """A dataset that a run is evaluated on and was not trained on.

    Attributes:
      name: name of its folder.
      digest: SHA-256 of what the run takes from it.
    """

    name: str
    digest: str

    @classmethod
    def at(cls, path: epath.PathLike, parts: Sequence[str]) -> Self:
        """Reads a dataset, of which a run takes some of `run_data.PARTS`."""
        found = run_data.identify(path)
        # An embedder's name may change where its vectors do not.
        taken = [found[part] for part in parts if part != "embedder"]
        digest = hashlib.sha256(json.dumps(taken).encode()).hexdigest()
        return cls(epath.Path(path).resolve().name, digest)


def folder_for(run_dir: epath.Path, other: OtherData | None) -> epath.Path:
    """Returns the folder for an evaluation, perhaps on another dataset than its own.

    Args:
      run_dir: where the evaluation on its own goes.
      other: the other dataset, if it is not its own. Its folder has its name, and a
        part of its digest as well if other data of that name were evaluated before.

    Raises:
      InputError: if the folder holds anything but such an evaluation.
    """
    if other is None:
        return run_dir
    folder = run_dir / other.name
    if _evaluated(folder) not in (None, other.digest):
        folder = run_dir / f"{other.name}-{other.digest[:6]}"
    if _evaluated(folder) is None and folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"`data`: the files would go into {folder}, which is taken; give the "
            "dataset's folder another name"
        )
    return folder


def _evaluated(folder: epath.Path) -> str | None:
    """Returns the digest of the data that were evaluated in a folder, if any were.

    It is "" if the evaluation is of an older version, which did not record it.
    """
    path = folder / "evaluation.json"
    if not path.exists():
        return None
    return str(evaluation_file.read(path).get("data", ""))
