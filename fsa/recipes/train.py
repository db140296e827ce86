"""Trains the run of a config; an interrupted run is resumed."""

import contextlib
from collections.abc import Iterator

import jax
from etils import epath

from fsa import bars
from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.parallel import processes
from fsa.recipes import config as configs
from fsa.recipes.config import Config
from fsa.recipes.kinds import RECIPES
from fsa.recipes.opening import opening
from fsa.recipes.run import build_optimizer, build_runner
from fsa.training import loop, run_data, run_directory, run_lock, run_paths
from fsa.training.checkpoint import Checkpoints
from fsa.training.compile_cache import keep_compiled
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
      InputError: if the run directory belongs to another config or to other data, is
        none of a run or held by another training, if data or language model are missing
        or damaged, or if the loss is not finite.
      Preempted: on SIGTERM, after the state is saved.
      Interrupted: on Ctrl-C, likewise.
    """
    with configs.naming_fields(config):
        return _train(config, workdir, profile_steps)


def _train(
    config: Config, workdir: epath.PathLike, profile_steps: tuple[int, ...]
) -> epath.Path:
    run_dir = run_directory.locate(workdir)
    profile = _profile(run_dir, profile_steps, config["train"]["steps"])
    with run_lock.hold(run_dir):
        return _train_alone(config, run_dir, profile)


def _train_alone(
    config: Config, run_dir: epath.Path, profile: Profile | None
) -> epath.Path:
    """Trains in a run directory that no other process trains in."""
    kind = RECIPES[config["kind"]]
    recorded = configs.read(run_dir) if (run_dir / "config.json").exists() else None
    if not run_directory.has_begun(run_dir):
        # Whatever it was made for, nothing is lost if it becomes that of this config.
        recorded = None
    config = kind.prepare(config, recorded)
    # A directory of another run is refused before any work is done. A new directory is
    # claimed when the run is built, since building checks the config and its data.
    if recorded:
        known = saved_model.data_of(run_dir) if _data_path(config) else None
        processes.on_first(lambda: _claim_again(run_dir, config, recorded, known))
    with keep_compiled(run_dir):
        return _run(config, run_dir, profile)


def _run(config: Config, run_dir: epath.Path, profile: Profile | None) -> epath.Path:
    """Builds the run of a checked config and trains it."""
    kind = RECIPES[config["kind"]]
    init_key, train_key, valid_key = jax.random.split(jax.random.key(config["seed"]), 3)
    first = processes.is_first()
    with bars.Bar(1, "Preparing the run", "part", shown=first) as bar:
        run = kind.build(config, init_key, valid_key)
        bar.advance()
    identity = run_data.identify(_data_path(config), run.data) if run.data else None
    processes.on_first(lambda: _claim(run_dir, config, identity))
    settings = config["train"]
    with _opened(run_dir, settings["keep_last"]) as checkpoints:
        if first:
            print(opening(config, run_dir, checkpoints.latest_step or 0), flush=True)
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
            meta={
                **run.description,
                "config": run_paths.to_saved(run.description["config"], run_dir),
                "optimizer": recorded,
                **({"data": identity} if identity else {}),
            },
            steps=settings["steps"],
            steps_per_call=settings["steps_per_call"],
            validate_every=settings["validate_every"],
            skip_bad_steps=settings["skip_bad_steps"],
            profile=profile,
        )
        if first:
            if profile:
                print(profile)
            print(f"Trained into {run_dir}, {_best(checkpoints, settings['steps'])}")
        run.finish(state, run_dir)
    return run_dir


@contextlib.contextmanager
def _opened(run_dir: epath.Path, keep_last: int) -> Iterator[Checkpoints]:
    """Opens the checkpoints of a run, and closes them on every way out."""
    checkpoints = Checkpoints(run_dir / "checkpoints", keep_last=keep_last)
    try:
        yield checkpoints
    except BaseException:
        # Closing waits for all processes, of which one that failed may be the only one.
        if jax.process_count() == 1:
            # What is being saved may fail as well; the first error is the one to show.
            with contextlib.suppress(Exception):
                checkpoints.close()
        raise
    checkpoints.close()


def _best(checkpoints: Checkpoints, steps: int) -> str:
    """Returns which step is used from now on, and why if it is not the last one."""
    step = checkpoints.best_step
    if step is None or step == steps:
        return f"best at step {step}."
    text = f"best at step {step:,} of {steps:,}, which is used"
    best, last = checkpoints.score(step), checkpoints.score(steps)
    if best is None or last is None:
        return f"{text}."
    return f"{text}: validation NLL rose after it ({best:.4f} to {last:.4f})."


def _optimizer_record(checkpoints: Checkpoints) -> dict[str, bool]:
    """Returns what checkpoints say of their optimizer, which a resumed run keeps.

    Those that say nothing are of versions that decayed the scales of stacked norms.
    """
    step = checkpoints.latest_step
    if step is None:
        return {"decays_stacked_scales": False}
    return checkpoints.meta(step).get("optimizer", {"decays_stacked_scales": True})


def _data_path(config: Config) -> str | None:
    return config.get("task", {}).get("path")


def _claim(run_dir: epath.Path, config: Config, identity: dict | None) -> None:
    """Makes the run directory of a new run; one that has begun was claimed before."""
    if not run_directory.has_begun(run_dir):
        # First, so that no run is without the record, wherever it is interrupted.
        if identity:
            run_data.record(run_dir, identity)
        run_directory.claim(run_dir, run_paths.to_saved(config, run_dir), replace=True)


def _claim_again(
    run_dir: epath.Path,
    config: Config,
    recorded: Config,
    known: run_data.Identity | None,
) -> None:
    """Opens the directory of a run, if it has this config and was trained on its data.

    Data and language model may have moved, and are looked for in their new places from
    then on: their digests tell that they are the same.

    Args:
      run_dir: the run directory.
      config: the config that the run is to go on with.
      recorded: the config of the run.
      known: the identity of its data.
    """
    saved, old = (run_paths.to_saved(each, run_dir) for each in (config, recorded))
    data, moved = _data_path(config), run_paths.with_paths_of(saved, old)
    if data and not known:
        # The data of older runs can only be known by their path.
        moved["task"] = old.get("task")
    run_directory.claim(run_dir, saved, upgrade=lambda _: moved)
    if data:
        run_data.check_there(run_dir, data, "config.task.path")
        parts = saved_model.data_parts(config["kind"], config)
        fix = "restore the original dataset, or use another `workdir`"
        run_data.check(run_dir, data, parts, fix, known=known)
    run_paths.move(saved, run_dir)


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
