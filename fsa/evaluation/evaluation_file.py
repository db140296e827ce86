"""Reads and writes `evaluation.json`, which is strict JSON and so has no NaN.

A number that is not known, such as an interval over a single user, is null in the file;
in lists that are read back it is NaN.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from fsa import folders, json_files
from fsa.errors import InputError


def write(path: epath.PathLike, evaluation: Mapping[str, Any]) -> None:
    """Writes an evaluation; NaN and infinite numbers become null."""
    text = json.dumps(_finite(evaluation), indent=1, allow_nan=False)
    folders.write_text(path, text + "\n")


def read(path: epath.PathLike) -> dict[str, Any]:
    """Reads an evaluation; null in a list becomes NaN.

    Raises:
      InputError: if the file is missing or damaged.
    """
    try:
        content = dict(json_files.read(path))
        content["n_context"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: damaged or no evaluation; evaluate the run again"
        ) from error
    return {name: _numbers(value) for name, value in content.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    infinite = isinstance(value, float) and not math.isfinite(value)
    return None if infinite else value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _numbers(part) for name, part in value.items()}
    if isinstance(value, list):
        return [math.nan if part is None else _numbers(part) for part in value]
    return value
