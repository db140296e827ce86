"""Reads JSON files, of which any may be damaged."""

import json
from typing import Any

from etils import epath


def read(path: epath.PathLike) -> Any:
    """Returns what a JSON file holds.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it cannot be read, is not UTF-8, is no JSON, or is JSON within JSON
        some thousand levels deep.
    """
    try:
        return json.loads(epath.Path(path).read_bytes())
    except (FileNotFoundError, ValueError):
        raise
    except OSError as error:
        raise ValueError(error.strerror) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
