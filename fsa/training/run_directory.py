"""Opens run directories: each belongs to one config, and records its versions."""

import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from fsa import folders, json_files
from fsa.errors import InputError

_LOG = logging.getLogger(__name__)

# Fields that may change when a run resumes: they concern devices and checkpoints.
_ELSEWHERE = ("mesh.", "train.parallel", "train.accumulate", "train.keep_last")

# Sections of a config that are read before its fields are checked.
_SECTIONS = ("task", "language_model", "mesh")

_RECORDED = ("fsa", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one dict with dotted names."""
    if not isinstance(config, dict):
        return {prefix: config}
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat


def differences(old: dict, new: dict) -> list[str]:
    """Returns `field: old -> new` for every field in which two configs differ."""
    old, new = flatten(old), flatten(new)
    missing = "absent"
    return [
        f"{name}: {old.get(name, missing)} -> {new.get(name, missing)}"
        for name in sorted(old | new)
        if old.get(name, missing) != new.get(name, missing)
    ]


def locate(workdir: epath.PathLike) -> epath.Path:
    """Returns a run directory as an absolute path, unless it is in object storage.

    Raises:
      InputError: if the name is empty, which would be the current folder.
    """
    if not os.fspath(workdir):
        raise InputError("`workdir` is empty; name a folder")
    path = epath.Path(workdir)
    return path if "://" in os.fspath(workdir) else path.absolute()


def has_begun(workdir: epath.PathLike) -> bool:
    """Whether a run has saved a checkpoint."""
    folder = epath.Path(workdir) / "checkpoints"
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def claim(
    workdir: epath.PathLike,
    config: dict[str, Any],
    *,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config,
    replace: bool = False,
) -> epath.Path:
    """Makes a run directory for a config, or opens one that was made for the same.

    Args:
      workdir: a path, created if missing.
      config: the resolved config, plain JSON.
      upgrade: turns a config of an older version into one that this version would have
        written, so that an older run is recognised.
      replace: whether another config is replaced, as that of a run that has not begun
        may be.

    Returns:
      The directory, with `config.json` and `run.json` (versions, seed, devices).

    Raises:
      InputError: if the directory cannot be written, or belongs to another config; the
        message names the fields that differ. Fields of `mesh` and the like may differ.
    """
    workdir = epath.Path(workdir)
    config = _as_json(config)
    if (workdir / "config.json").exists():
        differ = [
            line
            for line in differences(_as_json(upgrade(read_config(workdir))), config)
            if not line.startswith(_ELSEWHERE)
        ]
        if not differ:
            return workdir
        if not replace:
            raise InputError(
                f"{workdir}: this run has another config ({'; '.join(differ)}); "
                "use its values or another `workdir`"
            )
        _LOG.info(
            "%s: it had another config, with which nothing was saved (%s); it is "
            "replaced",
            workdir,
            "; ".join(differ),
        )
    run = {
        "seed": config.get("seed"),
        "versions": {name: _version(name) for name in _RECORDED},
        "python": platform.python_version(),
        "devices": [str(device) for device in jax.devices()],
        "command": sys.argv,
    }
    made = [] if "://" in os.fspath(workdir) else folders.missing(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "run.json").write_text(json.dumps(run, indent=1) + "\n")
        # The config is written last, since the directory belongs to it from then on.
        draft = workdir / "config.json.draft"
        draft.write_text(json.dumps(config, indent=1) + "\n")
        draft.replace(workdir / "config.json")
    except OSError as error:
        folders.remove_empty(made)
        raise InputError(
            f"`workdir`={workdir} cannot be written ({error.strerror}); "
            "choose a folder that you may write to"
        ) from error
    return workdir


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config as it is read back from JSON, with lists in place of tuples."""
    return json.loads(json.dumps(config))


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
    """Returns the resolved config of a run.

    Raises:
      InputError: if the file is missing, damaged or that of something else.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"{workdir}: no run (config.json is missing); train one first")
    try:
        config = json_files.read(path)
    except ValueError as error:
        raise InputError(
            f"{path}: not JSON ({error}); restore it or train again"
        ) from error
    if not isinstance(config, dict) or {"model_type", "architectures"} & {*config}:
        raise InputError(
            f"`workdir`={workdir}: its config.json is that of a language model or of "
            "another program, not of a run; name another folder"
        )
    if wrong := _wrong_section(config):
        raise InputError(f"{path}: damaged: {wrong}; restore it or train again")
    return config


def _wrong_section(config: dict[str, Any]) -> str | None:
    """Returns in words which section or path of a config is not one, if any."""
    for name in _SECTIONS:
        section = config.get(name, {})
        if not isinstance(section, dict):
            return f"{name} is {section!r} and not an object of fields"
        path = section.get("path")
        if not isinstance(path, str | None):
            return f"{name}.path is {path!r} and not a text"
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
