"""Runners: many steps in one call, under `jax.jit` with a mesh or under `jax.pmap`.

The time of a step of a small model is mostly dispatch, so a call scans over S steps.
Both runners give the same numbers up to the order of sums.

Shapes: S steps of one call, B examples of a global batch.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fsa.data.tasks.task import UserRecord, equally_wide
from fsa.errors import InputError
from fsa.parallel import sharding
from fsa.parallel.sharding import BATCH_AXES, DATA, Rules
from fsa.training.step import LossFn, TrainState, make_step

_LOG = logging.getLogger(__name__)

# (step, positions in the global batch) -> those examples, leaves `[len(positions)]`. An
# example depends only on the step and its position, not on the process that makes it.
MakeExamples = Callable[[int, np.ndarray], Any]


class Runner(Protocol):
    """Runs steps, and places their state and examples on devices.

    Attributes:
      batch_size: B.
    """

    batch_size: int

    def place(self, tree: Any) -> Any:
        """Places a state, or constants that all examples share, on the devices.

        Arrays that are not on devices of all processes yet must be the same in every
        process.
        """

    def batch(self, make_examples: MakeExamples, first: int, count: int) -> Any:
        """Returns the examples `[S, B]` of `count` steps, starting at `first`.

        Every process makes only the examples that its own devices need.
        """

    def __call__(
        self, state: TrainState, constants: Any, examples: Any, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Runs S steps; the memory of `state` is reused for the new state.

        Args:
          state: from `place` or from the last call.
          constants: from `place`.
          examples: from `batch`.
          key: the run's random key.

        Returns:
          The new state, and metrics `[S]` of the global batches.
        """


def _scan(step, pin=lambda state: state):
    def many(state, constants, examples, key):
        def body(state, example):
            state, metrics = step(state, (constants, example), key)
            return pin(state), metrics

        return jax.lax.scan(body, state, examples)

    return many


class MeshRunner:
    """Runs steps under `jax.jit` on a mesh, for any number of processes.

    Attributes:
      batch_size: B.
      mesh: a mesh with the axes `fsa.parallel.sharding.AXES`.
      example_sharding: sharding of the examples `[S, B]`.
      jitted: the function of a call, which can be lowered without running it.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        *,
        batch_size: int,
        mesh: Mesh | None = None,
        rules: Rules = (),
        average_decay: float = 0.0,
        accumulate: int = 1,
    ):
        """Creates the runner; nothing is compiled before the first call.

        Args:
          loss_fn: loss of batches `(constants, examples)`.
          optimizer: optimizer of the parameters.
          batch_size: B.
          mesh: by default all devices on the axis `data`.
          rules: sharding rules of the state and the constants.
          average_decay: see `make_step`.
          accumulate: see `make_step`; every micro-batch is split over all devices.

        Raises:
          InputError: if the examples cannot be split evenly over the devices.
        """
        self.mesh = mesh or sharding.make_mesh()
        self._rules = rules
        self._logged: set[str] = set()
        self.batch_size = batch_size
        sharding.check_batch_size(batch_size, self.mesh.shape, accumulate)
        self.example_sharding = NamedSharding(
            self.mesh, PartitionSpec(None, BATCH_AXES)
        )
        by_example = NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))
        self._own = sharding.own_positions(by_example, batch_size)
        step = make_step(
            loss_fn,
            optimizer,
            average_decay=average_decay,
            accumulate=accumulate,
            pin=self._pin,
        )
        many = _scan(step, self._pin)

        def run(state, constants, examples, key):
            state, metrics = many(state, constants, examples, key)
            return state, self._pin(metrics)

        self.jitted = jax.jit(sharding.on_mesh(run, self.mesh), donate_argnums=0)

    def shardings(self, tree: Any) -> Any:
        """Returns the sharding that `place` gives each array of a tree."""
        return sharding.shardings(tree, self.mesh, self._rules)

    def place(self, tree: Any) -> Any:
        """See `Runner`; logs each axis of a rule that does not divide an array."""
        for line in sharding.not_split(tree, self.mesh, self._rules):
            if line not in self._logged:
                _LOG.info("%s", line)
            self._logged.add(line)
        return sharding.place(tree, self.shardings(tree))

    def _pin(self, tree):
        # Outputs get the sharding of inputs, so that the next call finds its arguments
        # there and nothing is compiled again.
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def batch(self, make_examples: MakeExamples, first: int, count: int) -> Any:
        """See `Runner`."""
        own = stack_examples(
            [make_examples(first + i, self._own) for i in range(count)]
        )

        def assemble(x):
            shape = (count, self.batch_size, *x.shape[2:])
            return jax.make_array_from_process_local_data(
                self.example_sharding, x, shape
            )

        return jax.tree.map(assemble, own)

    def __call__(self, state, constants, examples, key):
        """See `Runner`."""
        return self.jitted(state, constants, examples, key)


class PmapRunner:
    """Runs steps under `jax.pmap` with replicated parameters, for one process.

    Attributes:
      batch_size: B.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        *,
        batch_size: int,
        devices: list | None = None,
        average_decay: float = 0.0,
        accumulate: int = 1,
    ):
        """Creates the runner; for arguments that are not listed, see `MeshRunner`.

        Args:
          devices: the devices to use; by default all.

        Raises:
          InputError: if there are several processes, or if the examples cannot be split
            evenly over the devices.
        """
        if jax.process_count() > 1:
            raise InputError(
                f"`parallel`=pmap is for one process, not {jax.process_count()}; use "
                "mesh"
            )
        mesh = sharding.make_mesh(devices=devices or jax.local_devices())
        sharding.check_batch_size(batch_size, mesh.shape, accumulate)
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._num_devices = mesh.size
        self.batch_size = batch_size
        self._mapped = jax.pmap(
            _scan(
                make_step(
                    loss_fn,
                    optimizer,
                    DATA,
                    average_decay=average_decay,
                    accumulate=accumulate,
                )
            ),
            axis_name=DATA,
            in_axes=(None, None, 1, None),
            out_axes=None,
            devices=list(mesh.devices.flat),
        )

    def place(self, tree: Any) -> Any:
        """See `Runner`."""
        return sharding.place(tree, jax.tree.map(lambda _: self._replicated, tree))

    def batch(self, make_examples: MakeExamples, first: int, count: int) -> Any:
        """See `Runner`; leaves are `[S, devices, B / devices]`."""
        every = np.arange(self.batch_size, dtype=np.int32)

        def split(x):
            return x.reshape(count, self._num_devices, -1, *x.shape[2:])

        examples = stack_examples(
            [make_examples(first + i, every) for i in range(count)]
        )
        return jax.tree.map(split, examples)

    def __call__(self, state, constants, examples, key):
        """See `Runner`."""
        return self._mapped(state, constants, examples, key)


def stack_examples(examples: list) -> Any:
    """Stacks the examples of S steps in one pytree with leaves `[S, B]`."""

    def is_record(x):
        return isinstance(x, UserRecord)

    def stack(*leaves):
        if is_record(leaves[0]):
            leaves = equally_wide(leaves)
        return jax.tree.map(lambda *x: np.stack(x), *leaves)

    return jax.tree.map(stack, *examples, is_leaf=is_record)
