"""Adapters of many people, each in a folder, as serving engines load them.

Shapes: U people, D latent dimensions.
"""

import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

from fsa import bars
from fsa.errors import InputError
from fsa.inference.steerer import Steerer

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
    progress: bool = False,
) -> list[pathlib.Path]:
    """Writes the LoRA adapter of each person, and that of nobody in particular.

    Adapters that the folder has already are kept, so that a call that was stopped can
    be repeated.

    Args:
      steerer: the policy.
      people: choices (prompt, chosen, rejected) by the name of the person.
      folder: where the folders are made.
      progress: whether to show a bar.

    Returns:
      The folders.

    Raises:
      InputError: for a person named `nobody`, and as `Steerer.latent` and
        `Steerer.adapter`.
    """
    if NOBODY in people:
        raise InputError(f"a person is named {NOBODY}, as the adapter of no choices is")
    folder = pathlib.Path(folder)
    people = {NOBODY: [], **people}
    folders = {name: folder / folder_name(name) for name in people}
    left = [name for name, path in folders.items() if not path.exists()]
    with bars.Bar(len(people), "Writing adapters", "person", shown=progress) as bar:
        bar.advance(len(people) - len(left))
        for first in range(0, len(left), _AT_ONCE):
            part = left[first : first + _AT_ONCE]
            latents = steerer.latents_of([people[name] for name in part])
            steerer.save_adapters(latents, [folders[name] for name in part])
            bar.advance(len(part))
    return list(folders.values())
