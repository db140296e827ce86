"""Paths in the saved config of a run, so that they are found from anywhere.

Outside the run directory a path is saved as an absolute one, inside it relative to the
run, so that the run directory can be moved with what it holds. Addresses in object
storage are kept as they are.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from fsa import folders
from fsa.training import run_directory

# The fields of a config that are paths: section and name.
FIELDS = (
    ("task", "path"),
    ("language_model", "path"),
    ("policy", "reward_model"),
)

Config = Mapping[str, Any]


def to_saved(config: Config, workdir: epath.PathLike) -> dict[str, Any]:
    """Returns a config with paths as they are saved in a run directory.

    Args:
      config: a config whose relative paths start at the current folder.
      workdir: the run directory.
    """
    run_dir = os.fspath(run_directory.locate(workdir))

    def saved(path: str) -> str:
        path = os.path.abspath(path)
        inside = pathlib.Path(path).is_relative_to(run_dir) and path != run_dir
        return os.path.relpath(path, run_dir) if inside else path

    return _map(config, saved)


def from_saved(config: Config, workdir: epath.PathLike) -> dict[str, Any]:
    """Returns the saved config of a run with paths that can be opened from here.

    Older runs saved paths as they were given; relative ones are looked for in the
    run directory, then in the current folder. They also saved an absolute path of data
    inside the run, which may have moved since.

    Args:
      config: the config as it is in the run directory.
      workdir: the run directory.
    """
    run_dir = run_directory.locate(workdir)

    def found(path: str) -> str:
        inside = run_dir / path
        if inside.exists():
            return os.fspath(inside)
        moved = run_dir / "data"
        if os.path.isabs(path) and os.path.basename(path) == "data" and moved.exists():
            return os.fspath(moved)
        return os.path.abspath(path)

    return _map(config, found)


def move(config: Config, workdir: epath.PathLike) -> None:
    """Writes the paths of a config into the saved config of a run.

    For a run whose data or language model have moved; nothing else is changed.

    Args:
      config: a config with paths as `to_saved` returns them.
      workdir: the run directory, which has a config.
    """
    saved = run_directory.read_config(workdir)
    changed = with_paths_of(config, saved)
    if changed != saved:
        path = run_directory.locate(workdir) / "config.json"
        folders.write_text(path, json.dumps(changed, indent=1) + "\n")


def with_paths_of(other: Config, config: Config) -> dict[str, Any]:
    """Returns a config with the paths of another one, where both have one."""
    changed = dict(config)
    for section, name in FIELDS:
        if name in changed.get(section, {}) and name in other.get(section, {}):
            changed[section] = {**changed[section], name: other[section][name]}
    return changed


def _map(config: Config, change: Callable[[str], str]) -> dict[str, Any]:
    """Returns a config with other paths on this machine's disks."""
    changed = dict(config)
    for section, name in FIELDS:
        path = changed.get(section, {}).get(name)
        if isinstance(path, str) and path and "://" not in path:
            changed[section] = {**changed[section], name: change(path)}
    return changed
