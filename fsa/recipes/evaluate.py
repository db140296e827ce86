"""Evaluates a run of any kind."""

import os
from typing import Any

from etils import epath

from fsa import folders
from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.inference.saved_model import POLICY, REWARD_MODEL
from fsa.parallel import processes
from fsa.recipes import config as configs
from fsa.recipes import policy_evaluation, reward_model_evaluation
from fsa.recipes.config import Config
from fsa.recipes.other_data import OtherData
from fsa.training import run_data, run_directory
from fsa.training.compile_cache import keep_compiled

# Kind of run -> the function that scores a run directory, given its config. A language
# model has no users to predict.
EVALUATIONS = {
    REWARD_MODEL: reward_model_evaluation.evaluate,
    POLICY: policy_evaluation.evaluate,
}


def evaluate(
    workdir: epath.PathLike,
    *,
    method: str | None = None,
    data: epath.PathLike | None = None,
    model: epath.PathLike | None = None,
    full: bool = False,
    fsdp: int | None = None,
    tensor: int | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Scores the best checkpoint of a run; prints tables, writes files into the run.

    All devices of all processes share the work, see `fsa.parallel.examples`; all
    processes must call this, and the first one writes.

    Args:
      workdir: the run directory.
      method: for policies, see `fsa.recipes.policy_evaluation.evaluate`.
      data: the folder of a dataset. If it is the run's own, it has moved there; another
        one is evaluated on knowingly, and the files go into a folder of its name in the
        run directory, see `fsa.recipes.other_data.folder_for`.
      model: where the language model of a policy is, if it has moved.
      full: whether to print all measures, each with its meaning.
      fsdp: number of devices that store a policy in parts, see `configs.mesh_sizes`.
      tensor: number of devices that compute a text together, likewise.
      batch_size: number of texts that a device writes together, for policies.

    Returns:
      The content of `evaluation.json`.

    Raises:
      InputError: if the directory has no run, if these options do not fit its kind, or
        if the dataset of the run is missing or was replaced by another one.
    """
    run_dir = run_directory.locate(workdir)
    config = configs.read(run_dir)
    mesh = config.get("mesh", {})
    try:
        # As in training; there may be fewer devices now.
        num_devices = mesh.get("fsdp", 1) * mesh.get("tensor", 1)
        configs.check(config, num_devices, recorded=config)
    except InputError as error:
        raise InputError(f"{run_dir / 'config.json'}: {error}") from error
    config = {**config, "mesh": configs.mesh_sizes(config, fsdp, tensor)}
    kind = config["kind"]
    if kind not in EVALUATIONS:
        how = saved_model.how_to_use(kind, run_dir)
        raise InputError(f"{run_dir}: a language model, which predicts nobody; {how}")
    options: dict[str, Any] = {"method": method} if method else {}
    if kind == POLICY:
        options["batch_size"] = batch_size
    for name, value in {"method": method, "model": model}.items():
        if value and kind != POLICY:
            raise InputError(f"`{name}`={value}: {run_dir} is not the run of a policy")
    if model:
        moved = {**config["language_model"], "path": os.fspath(model)}
        config = {**config, "language_model": moved}
    config, other = _with_data(config, run_dir, data)
    room = "make room there, or copy the run"
    processes.on_first(lambda: folders.check_writable(run_dir, room))
    if other:
        options["other"] = other
    with keep_compiled(run_dir), configs.naming_fields(config):
        return EVALUATIONS[kind](config, run_dir, full=full, **options)


def _with_data(
    config: Config, run_dir: epath.Path, given: epath.PathLike | None
) -> tuple[Config, OtherData | None]:
    """Chooses the dataset to evaluate on.

    Returns:
      The config with its path, and what names it if it is not the run's own.
    """
    path = config["task"].get("path")
    if path is None and given is not None:
        raise InputError(f"`data`={given}: {run_dir} was trained on simulated users")
    if path is None:
        return config, None
    parts = saved_model.data_parts(config["kind"], config)
    fix = "restore the original dataset, or name another one with `data`"
    known = saved_model.data_of(run_dir)
    if given is None:
        run_data.check_there(run_dir, path)
        run_data.check(run_dir, path, parts, fix, known=known)
        return config, None
    if known is None and run_data.is_there(path):
        known = run_data.check(run_dir, path, parts, fix, known=None)
    config = {**config, "task": {**config["task"], "path": os.fspath(given)}}
    if known and not run_data.differences(known, given, parts):
        return config, None
    return config, OtherData.at(given, parts)
