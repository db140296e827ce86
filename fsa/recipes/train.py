"""Trains the run of a config; an interrupted run is resumed."""

import jax
from etils import epath

from fsa.errors import InputError
from fsa.parallel import processes
from fsa.recipes import config as configs
from fsa.recipes.config import Config
from fsa.recipes.kinds import RECIPES
from fsa.recipes.run import build_optimizer, build_runner
from fsa.training import loop, run_directory
from fsa.training.checkpoint import Checkpoints
from fsa.training.monitor.metrics import MetricsWriter
from fsa.training.monitor.profiling import Profile
from fsa.training.step import init_state


def train(
    config: Config, workdir: epath.PathLike, *, profile_steps: tuple[int, ...] = ()
) -> epath.Path:
    """Trains the run of a config to its end; resumes it if it was interrupted.

    All processes of the run must call this.

    Args:
      config: a checked config, see `fsa.recipes.config.resolve`.
      workdir: the run directory, created if missing.
      profile_steps: the first and the last step to profile, counted from 0.

    Returns:
      The run directory.

    Raises:
      InputError: if the run directory belongs to another config, if data or language
        model are missing or damaged, or if the loss is not finite.
      Preempted: on SIGTERM, after the state is saved.
    """
    with configs.naming_fields(config):
        return _train(config, workdir, profile_steps)


def _train(
    config: Config, workdir: epath.PathLike, profile_steps: tuple[int, ...]
) -> epath.Path:
    run_dir = run_directory.locate(workdir)
    profile = _profile(run_dir, profile_steps, config["train"]["steps"])
    kind = RECIPES[config["kind"]]
    recorded = configs.read(run_dir) if (run_dir / "config.json").exists() else None
    config = kind.prepare(config, recorded)
    # A directory of another run is refused before any work is done. A new directory is
    # claimed when the run is built, since building checks the config and its data.
    processes.on_first(lambda: _claim(run_dir, config, new=False))
    keep_compiled(run_dir)
    init_key, train_key, valid_key = jax.random.split(jax.random.key(config["seed"]), 3)
    run = kind.build(config, init_key, valid_key)
    processes.on_first(lambda: _claim(run_dir, config, new=True))
    settings = config["train"]
    checkpoints = Checkpoints(run_dir / "checkpoints", keep_last=settings["keep_last"])
    recorded = _optimizer_record(checkpoints)
    optimizer = build_optimizer(config, **recorded)
    state = loop.train(
        init_state(run.variables, optimizer),
        runner=build_runner(config, run.loss_fn, run.sharding_rules, optimizer),
        constants=run.constants,
        make_examples=run.make_examples,
        key=train_key,
        validate=run.validate,
        checkpoints=checkpoints,
        writer=lambda step: MetricsWriter(run_dir, resume_step=step),
        meta={**run.description, "optimizer": recorded},
        steps=settings["steps"],
        steps_per_call=settings["steps_per_call"],
        validate_every=settings["validate_every"],
        skip_bad_steps=settings["skip_bad_steps"],
        profile=profile,
    )
    if profile:
        print(profile)
    print(f"Trained into {run_dir}, best at step {checkpoints.best_step}.")
    run.finish(state, run_dir)
    checkpoints.close()
    return run_dir


def keep_compiled(run_dir: epath.Path) -> None:
    """Keeps compiled programs in the run directory, for resuming and evaluation.

    If JAX_COMPILATION_CACHE_DIR is set, that folder is used instead, so that several
    runs can share programs.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(run_dir / "compiled"))


def _optimizer_record(checkpoints: Checkpoints) -> dict[str, bool]:
    """Returns what checkpoints say of their optimizer, which a resumed run keeps.

    Those that say nothing are of versions that decayed the scales of stacked norms.
    """
    step = checkpoints.latest_step
    if step is None:
        return {"decays_stacked_scales": False}
    return checkpoints.meta(step).get("optimizer", {"decays_stacked_scales": True})


def _claim(run_dir: epath.Path, config: Config, *, new: bool) -> None:
    if new or (run_dir / "config.json").exists():
        run_directory.claim(run_dir, config, upgrade=configs.upgrade)


def _profile(run_dir: epath.Path, bounds: tuple[int, ...], steps: int):
    """Returns the profile of the given steps, or None."""
    if not bounds:
        return None
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] < steps:
        given = ",".join(map(str, bounds))
        raise InputError(
            f"`profile_steps`={given}: give FIRST,LAST, of the steps 0 to {steps - 1}"
        )
    return Profile(run_dir / "tensorboard", *bounds)
