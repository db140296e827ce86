"""The run directory: one resolved config, and what it ran with."""

import importlib.metadata
import json
import platform
import sys
from typing import Any

import jax
from etils import epath

from fsa.errors import InputError

# Where a run is computed and kept is no part of what it is: it resumes elsewhere.
_ELSEWHERE = ("mesh.", "train.parallel", "train.accumulate", "train.keep_last")

_RECORDED = ("fsa", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted names."""
    if not isinstance(config, dict):
        return {prefix: config}
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat


def differences(old: dict, new: dict) -> list[str]:
    """`field: old -> new` for every field of two configs that differs."""
    old, new = flatten(old), flatten(new)
    missing = "absent"
    return [
        f"{name}: {old.get(name, missing)} -> {new.get(name, missing)}"
        for name in sorted(old | new)
        if old.get(name, missing) != new.get(name, missing)
    ]


def locate(workdir: str) -> epath.Path:
    """A run directory as a path that stays right elsewhere: absolute, or a bucket's."""
    path = epath.Path(workdir)
    return path if "://" in workdir else path.absolute()


def claim(workdir: epath.PathLike, config: dict[str, Any]) -> epath.Path:
    """Makes a run directory for a config, or returns to one made for the same.

    Args:
      workdir: a path, made if missing.
      config: the resolved config, plain JSON.

    Returns:
      The directory, which holds `config.json` and `run.json` (versions, seed, devices).

    Raises:
      InputError: if it belongs to another config, naming the fields that differ
        (`mesh.*` and the like may), or cannot be written.
    """
    workdir = epath.Path(workdir)
    # As JSON has it, so that tuples equal the lists that are read back.
    config = json.loads(json.dumps(config))
    if (workdir / "config.json").exists():
        differ = [
            line
            for line in differences(read_config(workdir), config)
            if not line.startswith(_ELSEWHERE)
        ]
        if differ:
            raise InputError(
                f"{workdir}: this run has another config ({'; '.join(differ)}); "
                "use its values or another --workdir"
            )
        return workdir
    run = {
        "seed": config.get("seed"),
        "versions": {name: _version(name) for name in _RECORDED},
        "python": platform.python_version(),
        "devices": [str(device) for device in jax.devices()],
        "command": sys.argv,
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "run.json").write_text(json.dumps(run, indent=1) + "\n")
        # The config comes last: with it the directory is claimed.
        draft = workdir / "config.json.draft"
        draft.write_text(json.dumps(config, indent=1) + "\n")
        draft.replace(workdir / "config.json")
    except OSError as error:
        raise InputError(
            f"--workdir={workdir} cannot be written ({error.strerror}); "
            "choose a folder that you may write to"
        ) from error
    return workdir


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
    """The resolved config of a run.

    Raises:
      InputError: if there is none, or it is damaged.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"{workdir}: no config.json there, so no run; train one first")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path}: not JSON ({error}); restore it or train again"
        ) from error


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
