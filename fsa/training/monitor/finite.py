"""Losses and gradients that are not finite: skipped, or the end of a run.

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
      skipped: int32 scalar, number of updates skipped so far.
      inner: state of the wrapped optimizer.
    """

    skipped: jax.Array
    inner: Any


def skip_not_finite(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer skip updates whose loss or gradients are not finite.

    Parameters and the optimizer's state then stay as they are. `optax.apply_if_finite`
    does not see the loss, and after some skipped updates applies one that is not
    finite. The wrapped optimizer takes the loss as `update(..., value=loss)`.
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
    """Returns which of S steps have a finite loss and gradient, `[S]`."""
    return np.isfinite(values["loss"]) & np.isfinite(values.get("grad_norm", 0.0))


class FiniteCheck:
    """Stops a run that has diverged, or logs the updates that were skipped."""

    def __init__(
        self, allowed: int, users: Callable[[int], str], last: Callable[[], str]
    ):
        """Creates the check.

        Args:
          allowed: number of updates that may be skipped in a run.
          users: returns the users in the batch of a step, as text.
          last: returns the path of the last good checkpoint.
        """
        self._allowed, self._users, self._last = allowed, users, last

    def __call__(self, first: int, values: Mapping[str, np.ndarray]):
        """Checks the steps of a call.

        Args:
          first: number of the first step.
          values: metrics `[S]`: `loss`, `grad_norm`, and, if updates may be skipped,
            `skipped`, the number of updates skipped in the run so far.

        Raises:
          InputError: if the run must stop; names the step, its users and the last good
            checkpoint.
        """
        for i in np.flatnonzero(~is_finite(values)):
            step = first + int(i)
            what = f"the loss or its gradient is not finite at step {step}"
            if not self._allowed:
                raise InputError(
                    f"{what} ({self._users(step)}); lower `learning_rate`, or let "
                    "`skip_bad_steps` updates be skipped. Last good checkpoint: "
                    f"{self._last()}"
                )
            count = int(values["skipped"][i])
            if count > self._allowed:
                raise InputError(
                    f"{what} ({self._users(step)}), and more than "
                    f"`skip_bad_steps`={self._allowed} updates would be skipped; lower "
                    f"`learning_rate`. Last good checkpoint: {self._last()}"
                )
            _LOG.warning(
                "Step %d: the loss or its gradient is not finite, the update is "
                "skipped, %d of at most %d in a run (%s)",
                *(step, count, self._allowed, self._users(step)),
            )
