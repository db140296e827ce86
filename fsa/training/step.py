"""The training step: a pure function of (state, batch, key), made from a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fsa.conditioning.hypernet import Head
from fsa.training.monitor.finite import SkipState

# (variables, batch, key) -> (mean loss over the batch, dict of mean metrics).
LossFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


class TrainState(NamedTuple):
    """Everything that a step changes, and the variables that it must not change.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: the collection `params`, which is trained.
      average: exponential moving average of `params`; the model that is evaluated.
      frozen: the model's other collections, e.g. `{"statistics": ...}`.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Any
    average: Any
    frozen: dict[str, Any]
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """All Flax variables of the averaged model, as `model.apply` takes them."""
        return {"params": self.average, **self.frozen}


def init_state(variables, optimizer: optax.GradientTransformation) -> TrainState:
    """Makes the state of a new run from Flax variables."""
    frozen = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    # A copy, since a step reuses the memory of both.
    average = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, average, frozen, optimizer.init(params))


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    *,
    average_decay: float = 0.0,
    accumulate: int = 1,
    pin: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the training step.

    Args:
      loss_fn: returns the mean loss and metrics of a batch.
      optimizer: optimizer of `state.params`.
      axis_name: a mapped axis (of pmap or shard_map) that splits the batch evenly;
        gradients and metrics are averaged over it.
      average_decay: decay of the moving average of parameters (Polyak & Juditsky 1992),
        at most (1 + t) / (10 + t) at step t, so that the start is forgotten. With 0 the
        average equals the parameters.
      accumulate: number of micro-batches into which a batch `(constants, examples)` is
        split. They are computed one after the other, so that memory holds the
        activations of one. The numbers are the same up to the order of sums if the loss
        is a mean over examples.
      pin: constrains the sharding of gradients on a mesh.

    Returns:
      `step(state, batch, key) -> (state, metrics)`. It adds the metrics `loss` and
      `grad_norm`, and, with `fsa.training.monitor.finite.skip_not_finite`, `skipped`,
      the number of updates that were skipped so far.
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def step(state, batch, key):
        def gradients(batch):
            def loss_of(params):
                return loss_fn({"params": params, **state.frozen}, batch, key)

            return pin(jax.value_and_grad(loss_of, has_aux=True)(state.params))

        if accumulate > 1:
            (loss, metrics), grads = _mean_of_micro_batches(
                gradients, batch, accumulate
            )
        else:
            (loss, metrics), grads = gradients(batch)
        metrics = {"loss": loss, **metrics}
        if axis_name is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        metrics["grad_norm"] = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, value=metrics["loss"]
        )
        if isinstance(opt_state, SkipState):
            metrics["skipped"] = opt_state.skipped
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(average_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(params, state.average, 1 - decay)
        state = TrainState(state.step + 1, params, average, state.frozen, opt_state)
        return state, metrics

    return step


def _mean_of_micro_batches(fn: Callable, batch: tuple[Any, Any], number: int) -> Any:
    """Returns the mean of `fn((constants, examples))` over equal parts of examples."""
    constants, examples = batch

    def split(x):
        # A part takes every `number`-th example: devices hold blocks of examples, so
        # each device has its share of every part.
        return x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1)

    def add(total, examples):
        return jax.tree.map(jnp.add, total, fn((constants, examples))), None

    parts = jax.tree.map(split, examples)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(fn, (constants, first))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / number, total)


def make_optimizer(
    *,
    learning_rate: float,
    steps: int,
    warmup_steps: int,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    head_learning_rate: float | None = None,
    decays_stacked_scales: bool = False,
) -> optax.GradientTransformation:
    """Makes AdamW with warm-up, cosine decay to 0 and clipping by the global norm.

    Weight decay leaves out arrays of fewer than two dimensions, the prior of z, and
    biases and scales of any shape, such as those of attention heads, of hypernetworks
    and of the norms of stacked layers.

    Args:
      learning_rate: the highest.
      steps: the last step, at which the learning rate is 0.
      warmup_steps: steps in which the learning rate rises from 0.
      weight_decay: of matrices.
      clip_norm: global norm that gradients are clipped to.
      head_learning_rate: the highest of hypernetworks' heads, the maps from z to gates;
        None for that of all others. A gate of a low rank begins at 0 and has to become
        large, while the factors that it multiplies begin random.
      decays_stacked_scales: also decay scales of two dimensions and more, to continue a
        run of a version that did.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, max(steps, warmup_steps + 1)
    )

    # The names tell, as a stack of layers adds a dimension to the arrays of each.
    spared = ("bias",) if decays_stacked_scales else ("bias", "scale")

    def is_matrix(path, p):
        names = [jax.tree_util.keystr((part,), simple=True) for part in path]
        return jnp.ndim(p) > 1 and names[-1] not in spared and "prior" not in names

    steps_of = [
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree_util.tree_map_with_path(is_matrix, params),
        ),
    ]
    if head_learning_rate is not None:
        ratio = head_learning_rate / learning_rate
        steps_of.append(optax.masked(optax.scale(ratio), _heads))
    return optax.chain(*steps_of)


def _heads(params: Any) -> Any:
    """Returns a tree of what is a hypernetwork's head, and what is not."""

    def is_head(part):
        return isinstance(part, Head)

    return jax.tree.map(is_head, params, is_leaf=is_head)
