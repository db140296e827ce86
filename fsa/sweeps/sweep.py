"""A whole sweep: checks all runs, trains and scores them, summarizes their scores."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from fsa.errors import InputError, did_you_mean
from fsa.recipes import config as configs
from fsa.recipes.evaluate import EVALUATIONS
from fsa.sweeps import plan
from fsa.sweeps.jobs import Job
from fsa.training import run_directory, run_lock


def sweep(
    config: ConfigDict,
    runs: Sequence[plan.Fields],
    folder: pathlib.Path,
    *,
    train: Sequence[str],
    evaluate: Sequence[str],
    at_once: int = 1,
    slurm: Mapping[str, str] | None = None,
) -> list[Job]:
    """Trains and scores the runs that are not done, and writes a summary of all.

    Args:
      config: the config that all runs share.
      runs: the fields of each run, as `plan.read_sweep` returns them.
      folder: folder of the sweep, which may hold part of the same sweep.
      train: see `plan.make_jobs`.
      evaluate: see `plan.make_jobs`.
      at_once: how many runs to do at a time.
      slurm: see `plan.run_jobs`.

    Returns:
      The jobs that failed.

    Raises:
      InputError: if a run's config is wrong, before any run begins; if the folder is
        that of another sweep, or holds anything else; or as `plan.run_jobs`.
    """
    check_all(config, runs)
    plan.check_slurm(slurm)
    run_lock.refuse_foreign(epath.Path(folder))
    names = {plan.name_of(fields): "wanted" for fields in runs}
    run_directory.claim(
        folder, {"config": config.to_dict(), "runs": names}, upgrade=_upgrade
    )
    jobs = plan.make_jobs(runs, folder, train=train, evaluate=evaluate)
    failed = plan.run_jobs(jobs, folder, at_once=at_once, slurm=slurm)
    plan.write(plan.gather(runs, jobs), folder)
    return failed


def check_all(config: ConfigDict, runs: Sequence[plan.Fields]) -> None:
    """Checks the config of every run.

    Args:
      config: the config that all runs share.
      runs: the fields of each run.

    Raises:
      InputError: naming the run and its field.
    """
    sizes = set()
    for fields in runs:
        own = config.copy_and_resolve_references()
        known = run_directory.flatten(own.to_dict())
        for name in fields.keys() - known.keys():
            hint = did_you_mean(name, known) or "check its spelling"
            raise InputError(
                f"get_sweep(), {plan.name_of(fields)}: no field {name}; {hint}".strip()
            )
        try:
            own.update_from_flattened_dict(fields)
            # Fields that depend on devices are checked by each run on its devices.
            own.mesh.fsdp = own.mesh.tensor = 1
            plain = configs.resolve(own)
        except (KeyError, TypeError, InputError) as error:
            raise InputError(
                f"get_sweep(), {plan.name_of(fields)}: {error.args[0]}"
            ) from error
        if plain["kind"] not in EVALUATIONS:
            raise InputError("`config`: a language model has no scores to compare")
        sizes.add(tuple(plain["eval"]["num_context"]))
    if len(sizes) > 1:
        raise InputError(
            f"get_sweep(): eval.num_context must be the same for all runs, not {sizes}"
        )


def _upgrade(description: Any) -> Any:
    """Returns the description of a sweep in the form of this version."""
    if not isinstance(description, dict) or "config" not in description:
        return description  # That of a single run, which is refused as another config.
    return {**description, "config": configs.upgrade(description["config"])}
