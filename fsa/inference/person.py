"""A person as stored: their choices, and the z that a training infers from them.

z means something only to the checkpoint that it was inferred by, which a stored person
names; the choices mean the same to any training.

Shapes: N choices, D latent dimensions.
"""

import dataclasses
import json
import math
from typing import Any, Self

import numpy as np
from etils import epath

from fsa import folders, json_files
from fsa.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """The choices of a person, and z.

    Attributes:
      choices: N of (prompt, chosen, rejected).
      z: `[D]` float32.
      checkpoint: SHA-256 of the checkpoint that inferred z, as `Steerer.origin` names
        it; "" if that is not known.
    """

    choices: tuple[tuple[str, str, str], ...]
    z: np.ndarray
    checkpoint: str

    def save(self, path: epath.PathLike) -> None:
        """Writes a JSON file.

        Raises:
          InputError: if it cannot be written.
        """
        content = {
            "checkpoint": self.checkpoint,
            "z": self.z.tolist(),
            "choices": [
                {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                for prompt, chosen, rejected in self.choices
            ],
        }
        folders.write_text(
            path, json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        )

    @classmethod
    def load(cls, path: epath.PathLike) -> Self:
        """Reads what `save` wrote.

        Raises:
          InputError: if the file is missing or not such a file.
        """
        try:
            content = json_files.read(path)
            choices = tuple(map(_choice, content["choices"]))
            checkpoint, z = content["checkpoint"], content["z"]
            sound = isinstance(checkpoint, str) and all(map(math.isfinite, z))
            with np.errstate(over="ignore"):  # A float may be infinite as a float32.
                z = np.asarray(z, np.float32)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise _no_person(path) from error
        if not sound or not np.isfinite(z).all():
            raise _no_person(path)
        return cls(choices, z, checkpoint)


def _choice(row: dict[str, Any]) -> tuple[str, str, str]:
    texts = row["prompt"], row["chosen"], row["rejected"]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    return texts


def _no_person(path: epath.PathLike) -> InputError:
    return InputError(
        f"{path}: not a stored person; write one by fsa steer --save_person"
    )
