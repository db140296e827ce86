"""Evaluates a run of any kind."""

from typing import Any

from etils import epath

from fsa.recipes import config as configs
from fsa.recipes.fit import keep_compiled
from fsa.recipes.kinds import KINDS


def evaluate(workdir: epath.PathLike, **options: Any) -> dict[str, Any]:
    """Scores the best checkpoint of a run; prints tables, writes files into the run.

    Args:
      workdir: the run directory.
      **options: `method` and `data`, see `fsa.recipes.policy_evaluation.evaluate`.

    Returns:
      The content of `evaluation.json`.

    Raises:
      InputError: if the directory has no run, or these options do not fit its kind.
    """
    run_dir = epath.Path(workdir).absolute()
    config = configs.read(run_dir)
    configs.check(config)
    keep_compiled(run_dir)
    with configs.naming_fields(config):
        return KINDS[config["kind"]].evaluate(config, run_dir, **options)
