"""What is done about losses and gradients that are not finite.

Shapes: S steps of one call.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fsa.errors import InputError

_LOG = logging.getLogger(__name__)


class SkipState(NamedTuple):
    """State of `skip_not_finite`.

    Attributes:
      skipped: int32 scalar, updates skipped so far.
      inner: of the wrapped optimizer.
    """

    skipped: jax.Array
    inner: Any


def skip_not_finite(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Leaves parameters and optimizer as they are where loss or gradients are not.

    `optax.apply_if_finite` does not see the loss, and in the end applies what it
    skipped. The wrapped optimizer takes the loss as `update(..., value=loss)`.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return SkipState(jnp.int32(0), optimizer.init(params))

    def update(grads, state, params=None, *, value, **extra):
        good = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
        updates, inner = optimizer.update(
            grads, state.inner, params, value=value, **extra
        )

        def kept(new, old):
            return jax.tree.map(lambda x, y: jnp.where(good, x, y), new, old)

        return kept(updates, jax.tree.map(jnp.zeros_like, updates)), SkipState(
            state.skipped + ~good, kept(inner, state.inner)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def is_finite(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which of S steps have a finite loss and gradient, `[S]`."""
    return np.isfinite(values["loss"]) & np.isfinite(values.get("grad_norm", 0.0))


class FiniteCheck:
    """Stops a run that has diverged, or notes what `skip_not_finite` skipped."""

    def __init__(
        self, allowed: int, users: Callable[[int], str], last: Callable[[], str]
    ):
        """Checks nothing yet.

        Args:
          allowed: updates that may be skipped in a run; 0 where none are.
          users: names the users in the batch of a step.
          last: names the last good checkpoint.
        """
        self._allowed, self._users, self._last = allowed, users, last

    def __call__(self, first: int, values: Mapping[str, np.ndarray]):
        """Checks the steps of a call.

        Args:
          first: of the steps.
          values: metrics `[S]`: `loss`, `grad_norm`, and `skipped`, how many updates
            had been skipped in the run, where they are.

        Raises:
          InputError: with the step, its users and the last good checkpoint.
        """
        for i in np.flatnonzero(~is_finite(values)):
            step = first + int(i)
            what = f"the loss or its gradient is not finite at step {step}"
            if not self._allowed:
                raise InputError(
                    f"{what} ({self._users(step)}); lower optimizer.learning_rate, or "
                    "let train.skip_bad_steps updates be skipped. Last good "
                    f"checkpoint: {self._last()}"
                )
            count = int(values["skipped"][i])
            if count > self._allowed:
                raise InputError(
                    f"{what} ({self._users(step)}), and more than "
                    f"train.skip_bad_steps={self._allowed} were skipped; lower "
                    f"optimizer.learning_rate. Last good checkpoint: {self._last()}"
                )
            _LOG.warning(
                "Step %d: the loss or its gradient is not finite, the update is "
                "skipped, %d of at most %d in a run (%s)",
                *(step, count, self._allowed, self._users(step)),
            )
