"""Updates that are not finite are skipped and counted, or end the run."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fsa.errors import InputError
from fsa.training.monitor.finite import FiniteCheck, skip_not_finite

PARAMS = {"w": jnp.asarray([1.0, -2.0, 3.0]), "b": jnp.asarray(0.5)}
BAD = [jnp.nan, jnp.inf, -jnp.inf]


def some_grads(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS
    )


def run(optimizer, steps):
    """Returns parameters and state after updates by (gradients, loss) pairs."""
    params, state = PARAMS, optimizer.init(PARAMS)
    for grads, loss in steps:
        updates, state = optimizer.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_update_changes_nothing(bad, where):
    """Neither parameters nor optimizer, and later updates are as if it never was."""
    good = [(some_grads(i), jnp.float32(i)) for i in range(4)]
    if where == "loss":
        step = (some_grads(9), jnp.float32(bad))
    else:
        step = ({**some_grads(9), "b": jnp.float32(bad)}, jnp.float32(1))
    wrapped = skip_not_finite(optax.adamw(optax.linear_schedule(1e-2, 0.0, 4)))
    params, state = run(wrapped, [*good[:2], step, *good[2:], step])
    wanted, wanted_state = run(wrapped, good)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    jax.tree.map(np.testing.assert_array_equal, state.inner, wanted_state.inner)
    assert (state.skipped, wanted_state.skipped) == (2, 0)
    plain, plain_state = run(
        optax.with_extra_args_support(optax.adamw(optax.linear_schedule(1e-2, 0.0, 4))),
        good,
    )
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    jax.tree.map(np.testing.assert_array_equal, state.inner, plain_state)


def metrics(loss, grad_norm=(1.0, 1.0, 1.0), skipped=(0, 0, 0)):
    given = {"loss": loss, "grad_norm": grad_norm, "skipped": skipped}
    return {name: np.asarray(value) for name, value in given.items()}


def check(allowed):
    return FiniteCheck(allowed, lambda step: f"users of {step}", lambda: "runs/a/4")


@pytest.mark.parametrize("bad", BAD)
def test_the_first_bad_step_is_named(bad):
    with pytest.raises(InputError) as stopped:
        check(0)(20, metrics((1.0, bad, bad)))
    for part in ("step 21", "users of 21", "`learning_rate`", "runs/a/4"):
        assert part in str(stopped.value)
    with pytest.raises(InputError, match="step 22"):
        check(0)(20, metrics((1.0, 2.0, 3.0), (1.0, 1.0, bad)))


def test_so_many_may_be_skipped(caplog):
    """In a run, however often it was resumed: the count is part of the state."""
    caplog.set_level(logging.WARNING, logger="fsa")
    check(3)(20, metrics((1.0, np.nan, np.nan), skipped=(1, 2, 3)))
    first, second = [record.getMessage() for record in caplog.records]
    assert all(part in first for part in ("Step 21", "2 of at most 3", "users of 21"))
    assert all(part in second for part in ("Step 22", "3 of at most 3", "users of 22"))
    with pytest.raises(InputError, match="step 21 .*`skip_bad_steps`=3 "):
        check(3)(20, metrics((1.0, np.nan, 1.0), skipped=(3, 4, 4)))


def test_finite_steps_are_not_logged(caplog):
    caplog.set_level(logging.WARNING, logger="fsa")
    check(0)(20, metrics((1.0, 2.0, 3.0)))
    assert not caplog.records
