"""Checkpoints that are whole or do not exist.

Orbax writes a step asynchronously and commits it by a rename. Orbax does not notice
damaged data (of 60 single-bit flips 41 were restored silently wrong), so a SHA-256
manifest of every file is written after the commit: a step without one was cut off and
is discarded, a step that does not match it is set aside, and in both cases the one
before is used.

Several processes open and use them together: each saves and restores what lies on its
devices, the first verifies, clears up and seals, and the others hear of it.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from fsa import digests
from fsa.errors import InputError
from fsa.parallel.processes import is_first, on_first

_LOG = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_META = "meta"
# What Orbax calls a step that it has not committed.
_UNCOMMITTED = re.compile(r"\d+\.orbax-checkpoint-tmp")
# Pytrees of arrays: what a user of the model needs, and what only training does.
VARIABLES, TRAINING = "variables", "training"


def _files(step_dir: epath.Path) -> dict[str, str]:
    """SHA-256 of every file of a step but the manifest."""
    return digests.of_files(step_dir, skip=lambda name: name.startswith(_MANIFEST))


def _damage(step_dir: epath.Path) -> str | None:
    """What is wrong with a step that has a manifest, or None."""
    try:
        expected = json.loads((step_dir / _MANIFEST).read_text())
    except ValueError:
        return f"{_MANIFEST} is not JSON"
    actual = _files(step_dir)
    for name in sorted(expected | actual):
        if expected.get(name) != actual.get(name):
            return f"{name} is not what was written"
    return None


class Checkpoints:
    """The checkpoints of one run: the latest few and the one with the best score.

    Attributes:
      directory: holds a folder a step, and `damaged/` where any was found.
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
          directory: made if missing, unless `read_only`.
          keep_last: how many of the latest are kept; 2 or more, so that one is left
            where the last is damaged.
          read_only: discard and set aside nothing; bad steps are merely passed over.
        """
        self.directory = epath.Path(directory)
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
                # Overridden by the policy, but without it Orbax stores no metrics.
                best_fn=lambda metrics: metrics["score"],
                best_mode="min",
                save_interval_steps=0 if read_only else 1,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
            # Named here so that a fresh process can read shapes before it restores.
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
        """Temporary folders that Orbax clears up, which may be in use if read-only."""
        if self._read_only or not self.directory.exists():
            return []
        found = self.directory.iterdir()
        return sorted(path for path in found if _UNCOMMITTED.match(path.name))

    def _verify(self) -> list[int]:
        """Sound steps; the others are discarded or set aside unless read-only."""
        cut_off = "%s: saving was cut off, the step is not used"
        for path in self._uncommitted():
            _LOG.warning(cut_off, path)
        sound = []
        for step in self._steps_on_disk():
            path = self.directory / str(step)
            if not (path / _MANIFEST).exists():
                _LOG.warning(cut_off, path)
                if not self._read_only:
                    path.rmtree()
            elif damage := _damage(path):
                _LOG.warning("%s: damaged (%s), the step is not used", path, damage)
                if not self._read_only:
                    target = self.directory / "damaged" / str(step)
                    target.parent.mkdir(exist_ok=True)
                    if target.exists():
                        target.rmtree()
                    path.rename(target)
            else:
                sound.append(step)
        return sound

    def _seal(self, step: int):
        """Waits for the commit of a step and writes its manifest.

        Orbax's own callback comes before the commit, hence a thread.
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
        """Starts saving in the background; one already under way is waited for.

        Args:
          step: number of updates made.
          items: pytrees of arrays named VARIABLES and TRAINING.
          score: lower is better; None where nothing was validated, which is never best
            while there is another.
          meta: JSON, what a reader needs besides the arrays.
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
        """Waits until everything is committed and sealed.

        Raises:
          Exception: what went wrong in the background, such as a full disk; the step
            that was being saved is lost, the ones before it are not.
        """
        sealing, self._sealing = self._sealing, None
        if sealing:
            sealing.result()
            multihost_utils.sync_global_devices("fsa checkpoint sealed")

    def close(self):
        """Waits, as `wait`, and releases the background threads."""
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            self._manager.close()

    @property
    def _steps(self) -> set[int]:
        """Sound steps that Orbax has not deleted since."""
        return self._sound & set(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The last sound step."""
        return max(self._steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The sound step with the lowest score."""

        def score(step):
            metrics = self._manager.metrics(step)
            return math.inf if metrics is None else metrics["score"], step

        return min(self._steps, key=score, default=None)

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON saved with a sound step."""
        args = ocp.args.Composite(**{_META: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=args)[_META]

    def shapes(self, step: int, name: str) -> Any:
        """Item `name` of a sound step as a pytree of `jax.ShapeDtypeStruct`."""
        saved = self._manager.item_metadata(step)[name].tree
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Restores items of a sound step.

        Args:
          step: a sound step.
          like: the items wanted, as pytrees of arrays or `jax.ShapeDtypeStruct` with
            the wanted structure, shapes, dtypes and shardings, which need not be the
            shardings it was saved with.

        Raises:
          InputError: for a checkpoint of another model, naming the first leaf that
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
                    f"{item}/{name} is {saved.get(name, 'absent')} there and "
                    f"{wanted.get(name, 'absent')} here; use the config it came from"
                )


def _leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by path; Orbax metadata turns tuples into dicts or lists, so the names
    are kept to what both have: keys and indices."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
