"""Checkpoints that are verified: a step is used only if it is complete and undamaged.

Orbax writes a step asynchronously and commits it by a rename. Orbax does not notice
damaged data (of 60 single-bit flips 41 were restored silently wrong), so a SHA-256
manifest of all files is written after the commit. A step is sound if it matches its
manifest. A step without a manifest was cut off and is discarded; a step that does not
match is moved to `damaged/`. In both cases the step before it is used.

If there are several processes, all of them must call the same methods. Each saves and
restores the parts of arrays on its own devices; the first one verifies steps, removes
what was cut off and writes manifests.
"""

import json
import logging
import math
import re
import sys
import threading
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from fsa import digests, folders, json_files
from fsa.errors import InputError
from fsa.parallel.processes import all_succeed, is_first, on_first

_LOG = logging.getLogger(__name__)


def _is_superfluous(record: logging.LogRecord) -> bool:
    """Returns whether a log message of Orbax or asyncio tells the user nothing new.

    Orbax warns if a directory is opened for reading only, which is intended here. If a
    save fails, Orbax logs the traceback in each of its threads, and asyncio logs one
    for each array on a full disk, although `Checkpoints.wait` raises the same error.
    """
    if str(record.msg).startswith("Given directory is read only"):
        return True
    if record.name == "asyncio":
        error = record.exc_info[1] if record.exc_info else None
        return bool(folders.refusal(error)) or _is_late(error)
    return "orbax" in record.pathname and record.levelno >= logging.ERROR


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(lambda record: not _is_superfluous(record))


def _is_late(error: BaseException | None) -> bool:
    """Returns whether a write of Orbax could not tell that it ended.

    Orbax closes its event loop when the first write of a save fails. Each of the others
    then fails as well, in a thread of TensorStore.
    """
    late = "Event loop is closed", "cannot schedule new futures after"
    return isinstance(error, RuntimeError) and str(error).startswith(late)


def _report(unraisable, before=sys.unraisablehook) -> None:
    """Reports an exception that cannot be raised, unless it comes of a failed save."""
    in_thread = threading.current_thread() is not threading.main_thread()
    if not (in_thread and _is_late(unraisable.exc_value)):
        before(unraisable)


sys.unraisablehook = _report

_MANIFEST = "manifest.json"
_META = "meta"
# Name of the folder of a step that Orbax has not committed.
_UNCOMMITTED = re.compile(r"\d+\.orbax-checkpoint-tmp")
# The items of a step, pytrees of arrays: those that users of the model need, and those
# that only training needs.
VARIABLES, TRAINING = "variables", "training"


def _files(step_dir: epath.Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of a step except the manifest."""
    return digests.of_files(step_dir, skip=lambda name: name.startswith(_MANIFEST))


def _damage(step_dir: epath.Path) -> str | None:
    """Returns what is wrong with a step that has a manifest, or None."""
    try:
        expected = dict(json_files.read(step_dir / _MANIFEST))
    except (ValueError, TypeError):
        return f"{_MANIFEST} is damaged"
    actual = _files(step_dir)
    for name in sorted(expected | actual):
        if expected.get(name) != actual.get(name):
            return f"{name} is not as it was written"
    return None


class Checkpoints:
    """The checkpoints of one run: the latest ones and the one with the best score.

    Attributes:
      directory: contains a folder for each step, and `damaged/` if any was found.
      unused: what is wrong with each step that was found and cannot be used.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_last: int = 2,
        read_only: bool = False,
    ):
        """Opens a folder of checkpoints.

        Args:
          directory: created if missing, unless `read_only`.
          keep_last: number of latest steps that are kept; at least 2, so that one is
            left if the last is damaged.
          read_only: bad steps are ignored, and neither removed nor moved.

        Raises:
          InputError: if a file is in the place of the folder.
        """
        self.directory = epath.Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise InputError(f"{directory}: is a file, not a folder; move it away")
        self.unused: list[str] = []
        self._read_only = read_only
        self._sealer = futures.ThreadPoolExecutor(max_workers=1)
        self._sealing: futures.Future | None = None
        self._sound = set(on_first(self._verify))
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(n=keep_last),
                checkpoint_managers.BestN(
                    n=1,
                    get_metric_fn=lambda m: m["score"],
                    reverse=True,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                # The policy overrides it, but without it Orbax stores no metrics.
                best_fn=lambda metrics: metrics["score"],
                best_mode="min",
                save_interval_steps=0 if read_only else 1,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
            # Named here, so that a new process can read shapes before it restores.
            item_handlers={
                VARIABLES: ocp.StandardCheckpointHandler(),
                TRAINING: ocp.StandardCheckpointHandler(),
                _META: ocp.JsonCheckpointHandler(),
            },
        )

    def _steps_on_disk(self) -> list[int]:
        if not self.directory.exists():
            return []
        names = [path.name for path in self.directory.iterdir()]
        return sorted(int(name) for name in names if name.isdigit())

    def _uncommitted(self) -> list[epath.Path]:
        """Returns the temporary folders that Orbax will remove; none if read-only."""
        if self._read_only or not self.directory.exists():
            return []
        found = self.directory.iterdir()
        return sorted(path for path in found if _UNCOMMITTED.match(path.name))

    def _verify(self) -> list[int]:
        """Returns the sound steps; removes or moves the others unless read-only.

        Those that are not used are logged, unless nothing can be read: whoever wanted
        to read says so.
        """
        why = "not complete yet" if self._read_only else "saving was cut off"
        unsealed = f"%s: {why}, the step is not used"
        self.unused += [unsealed % path for path in self._uncommitted()]
        sound = []
        for step in self._steps_on_disk():
            path = self.directory / str(step)
            if not (path / _MANIFEST).exists():
                if path.exists():
                    self.unused.append(unsealed % path)
                if not self._read_only:
                    path.rmtree()
                continue
            try:
                damage = _damage(path)
            except FileNotFoundError:
                if not self._read_only:
                    raise
                continue  # A training that goes on has deleted the step.
            if damage:
                self.unused.append(f"{path}: damaged ({damage}), the step is not used")
                if not self._read_only:
                    target = self.directory / "damaged" / str(step)
                    target.parent.mkdir(exist_ok=True)
                    if target.exists():
                        target.rmtree()
                    path.rename(target)
            else:
                sound.append(step)
        if sound or not self._read_only:
            for message in self.unused:
                _LOG.warning("%s", message)
        return sound

    def _seal(self, step: int):
        """Waits for the commit of a step and writes its manifest.

        Runs in a thread, since Orbax's own callback comes before the commit.
        """
        self._manager.wait_until_finished()
        if is_first():
            path = self.directory / str(step)
            draft = path / (_MANIFEST + ".draft")
            draft.write_text(json.dumps(_files(path), indent=1))
            draft.rename(path / _MANIFEST)
        self._sound.add(step)

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        *,
        score: float | None,
        meta: Mapping[str, Any],
    ):
        """Starts saving in the background, after any save that is still in progress.

        Args:
          step: number of updates made.
          items: pytrees of arrays named VARIABLES and TRAINING.
          score: lower is better; None if the step was not validated, which is the best
            only if no step has a score.
          meta: JSON that readers need besides the arrays.
        """
        self.wait()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                **{_META: ocp.args.JsonSave(dict(meta))},
            ),
            metrics=None if score is None else {"score": float(score)},
        )
        self._sealing = self._sealer.submit(self._seal, step)

    def wait(self):
        """Waits until the step that is being saved is complete, with its manifest.

        Raises:
          Exception: the error that the save met in the background, such as a full
            disk; that step is lost, the ones before it are not.
        """
        sealing, self._sealing = self._sealing, None
        if sealing:
            all_succeed(sealing.result)

    def close(self):
        """Waits, as `wait` does, and releases the background threads."""
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            self._manager.close()

    @property
    def _steps(self) -> set[int]:
        """The sound steps that Orbax has not deleted since."""
        return self._sound & set(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The last sound step; None if there is none."""
        return max(self._steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The sound step with the lowest score; None if there is none."""

        def order(step):
            score = self.score(step)
            return math.inf if score is None else score, step

        return min(self._steps, key=order, default=None)

    def score(self, step: int) -> float | None:
        """Returns the score that a sound step was saved with, if any."""
        metrics = self._manager.metrics(step)
        return None if metrics is None else metrics["score"]

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the JSON that was saved with a sound step."""
        args = ocp.args.Composite(**{_META: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=args)[_META]

    def digest(self, step: int) -> str:
        """Returns a SHA-256 of the files of a sound step, by which it can be named."""
        return digests.of_file(self.directory / str(step) / _MANIFEST)

    def shapes(self, step: int, name: str) -> Any:
        """Returns item `name` of a sound step as a pytree of `jax.ShapeDtypeStruct`."""
        saved = self._manager.item_metadata(step)[name].tree
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Restores items of a sound step.

        Args:
          step: a sound step.
          like: the items to restore, as pytrees of arrays or `jax.ShapeDtypeStruct`
            with the wanted structure, shapes, dtypes and shardings; the shardings may
            differ from those it was saved with.

        Raises:
          InputError: if the checkpoint is of another model; names the first leaf that
            differs.
        """
        for name, tree in like.items():
            self._check_same_model(step, name, tree)
        default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def abstract(x):
            sharding = getattr(x, "sharding", None) or default
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        args = {
            name: ocp.args.StandardRestore(jax.tree.map(abstract, tree))
            for name, tree in like.items()
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in like}

    def _check_same_model(self, step: int, item: str, like: Any):
        saved, wanted = _leaf_shapes(self.shapes(step, item)), _leaf_shapes(like)
        for name in sorted(saved | wanted):
            if saved.get(name) != wanted.get(name):
                raise InputError(
                    f"{self.directory / str(step)}: a checkpoint of another model: "
                    f"{item}/{name} is {saved.get(name, 'absent')} in the checkpoint "
                    f"and {wanted.get(name, 'absent')} in this model; use the config "
                    "that it was saved with"
                )


def _leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of leaves by their paths of keys and indices.

    Orbax metadata turns tuples into dicts or lists, which have the same such paths.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
