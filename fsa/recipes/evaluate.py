"""Evaluates a run of any kind."""

from typing import Any

from etils import epath

from fsa.errors import InputError
from fsa.inference.saved_model import POLICY, REWARD_MODEL
from fsa.recipes import config as configs
from fsa.recipes import policy_evaluation, reward_model_evaluation
from fsa.recipes.train import keep_compiled
from fsa.training import run_directory

# Kind of run -> the function that scores a run directory, given its config. A language
# model has no users to predict.
EVALUATIONS = {
    REWARD_MODEL: reward_model_evaluation.evaluate,
    POLICY: policy_evaluation.evaluate,
}


def evaluate(
    workdir: epath.PathLike, *, method: str | None = None, data: str | None = None
) -> dict[str, Any]:
    """Scores the best checkpoint of a run; prints tables, writes files into the run.

    Args:
      workdir: the run directory.
      method: for policies, see `fsa.recipes.policy_evaluation.evaluate`.
      data: likewise.

    Returns:
      The content of `evaluation.json`.

    Raises:
      InputError: if the directory has no run, or these options do not fit its kind.
    """
    run_dir = run_directory.locate(workdir)
    config = configs.read(run_dir)
    mesh = config.get("mesh", {})
    try:
        # One device is enough, whatever mesh the run was trained on.
        configs.check(config, num_devices=mesh.get("fsdp", 1) * mesh.get("tensor", 1))
    except InputError as error:
        raise InputError(f"{run_dir / 'config.json'}: {error}") from error
    if config["kind"] not in EVALUATIONS:
        raise InputError(f"{run_dir}: a run of a language model; sample it instead")
    options = {"method": method, "data": data}
    options = {name: value for name, value in options.items() if value}
    if options and config["kind"] != POLICY:
        name, value = options.popitem()
        raise InputError(f"`{name}`={value}: {run_dir} is not the run of a policy")
    keep_compiled(run_dir)
    with configs.naming_fields(config):
        return EVALUATIONS[config["kind"]](config, run_dir, **options)
