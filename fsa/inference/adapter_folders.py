"""Adapters of many people, each in a folder, as serving engines load them.

Shapes: U people, D latent dimensions.
"""

import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

import numpy as np

from fsa import bars, json_files
from fsa.errors import InputError
from fsa.inference.steerer import Steerer
from fsa.parallel import processes

# The adapter of somebody of whom no choice is known. An engine that answers several
# people in one batch needs one for everybody.
NOBODY = "nobody"

# People whose adapters are computed together.
_AT_ONCE = 16


def folder_name(person: str) -> str:
    """Returns the name of a person's folder; letters that it cannot have as %XX."""
    return urllib.parse.quote(person, safe=" ").replace(".", "%2E")


def write_adapters(
    steerer: Steerer,
    people: Mapping[str, Sequence[tuple[str, str, str]]],
    folder: str | pathlib.Path,
    *,
    rank: int | None = None,
    progress: bool = False,
) -> tuple[list[pathlib.Path], list[pathlib.Path], float]:
    """Writes the LoRA adapter of each person, and that of nobody in particular.

    Adapters of the same training and the same choices that the folder has already are
    kept, so that a call that was stopped can be repeated.

    Args:
      steerer: the policy.
      people: choices (prompt, chosen, rejected) by the name of the person.
      folder: where the folders are made.
      rank: of the nearest adapters, see `Steerer.save_adapter`.
      progress: whether to show a bar.

    Returns:
      The folders that were written, those that were kept, and the largest error of
      those that were written, which is 0 for exact ones.

    Raises:
      InputError: for a person named `nobody`, a folder that is there and holds another
        adapter, and as `Steerer.latents_of` and `Steerer.adapter`.
    """
    if NOBODY in people:
        raise InputError(f"a person is named {NOBODY}, as the adapter of no choices is")
    people = {NOBODY: [], **people}
    names = list(people)
    folders = [pathlib.Path(folder, folder_name(name)) for name in names]
    written, kept, error = [], [], 0.0
    with bars.Bar(len(people), "Writing adapters", "person", shown=progress) as bar:
        for first in range(0, len(names), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            latents = steerer.latents_of([people[name] for name in names[part]])
            there = processes.on_first(
                lambda latents=latents, part=part: [
                    _is_kept(steerer, z, path, rank)
                    for z, path in zip(latents, folders[part], strict=True)
                ]
            )
            new = [i for i, known in enumerate(there) if not known]
            if new:
                own = [folders[part][i] for i in new]
                error = max(error, steerer.save_adapters(latents[new], own, rank))
                written += own
            kept += [folders[first + i] for i, known in enumerate(there) if known]
            bar.advance(len(there))
    return written, kept, error


def _is_kept(
    steerer: Steerer, z: np.ndarray, folder: pathlib.Path, rank: int | None
) -> bool:
    """Whether a folder holds the adapter of this z already.

    Raises:
      InputError: if it holds anything else.
    """
    if not folder.exists():
        return False
    try:
        known = json_files.read(folder / "fsa.json")
        same = np.allclose(known.pop("z"), z, atol=1e-4)
        if same and known == steerer.origin_of_adapter(rank):
            return True
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass
    raise InputError(
        f"{folder}: holds the adapter of another training or of other choices; remove "
        "it, or name another folder"
    )
