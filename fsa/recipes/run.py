"""The parts of a run, which all kinds of run have in common."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from fsa.data.dataset import Dataset
from fsa.evaluation.predictions import Predictions
from fsa.evaluation.scores import right, user_means
from fsa.models import reward_models
from fsa.parallel.processes import is_first
from fsa.parallel.sharding import Rules, make_mesh
from fsa.recipes.config import Config
from fsa.training.monitor.finite import skip_not_finite
from fsa.training.runner import MakeExamples, MeshRunner, PmapRunner, Runner
from fsa.training.step import LossFn, TrainState, make_optimizer


class Run(NamedTuple):
    """The parts of a run that `fsa.training.loop.train` needs.

    Attributes:
      variables: initial Flax variables.
      loss_fn: loss of batches `(constants, examples)`.
      constants: arrays that all examples share.
      make_examples: makes examples of the global batch of a step.
      validate: returns metrics of a state on held-out users; `score` is minimised.
      sharding_rules: how parameters and constants are split over a mesh.
      description: JSON saved with every checkpoint, see `fsa.inference.saved_model`.
      finish: called with the final state and the run directory, by all processes; saves
        or prints what the kind needs at the end.
      data: the dataset that the run reads, if any.
    """

    variables: Any
    loss_fn: LossFn
    constants: Any
    make_examples: MakeExamples
    validate: Callable[[TrainState], dict[str, float]]
    sharding_rules: Rules
    description: dict[str, Any]
    finish: Callable[[TrainState, epath.Path], None]
    data: Dataset | None = None


class AbstractRun(NamedTuple):
    """The parts of a run that its step needs, as `jax.ShapeDtypeStruct`s.

    Attributes:
      variables: Flax variables.
      loss_fn: loss of batches `(constants, examples)`.
      constants: arrays that all examples share.
      examples: examples of one step.
      sharding_rules: how parameters and constants are split over a mesh.
      trains_all: whether gradients of all weights are computed, or only of a few.
    """

    variables: Any
    loss_fn: LossFn
    constants: Any
    examples: Any
    sharding_rules: Rules
    trains_all: bool


def shapes_of(run: Run, config: Config) -> AbstractRun:
    """Returns the shapes of a run that was built, and that trains all parameters."""
    positions = jnp.arange(config["train"]["batch_size"], dtype=jnp.int32)
    parts = (
        run.variables,
        run.constants,
        run.make_examples(0, jax.device_get(positions)),
    )
    variables, constants, examples = jax.eval_shape(lambda: parts)
    return AbstractRun(
        variables, run.loss_fn, constants, examples, run.sharding_rules, trains_all=True
    )


def tell_how_to_evaluate(state: TrainState, run_dir: epath.Path) -> None:
    """Prints the command that evaluates a run; the `finish` of runs with users."""
    del state
    if is_first():
        print(f"Next: fsa evaluate --workdir={run_dir}")


def model_arguments(
    config: Config, num_items: int, levels: Sequence[float] = ()
) -> dict[str, Any]:
    """Returns the arguments of `reward_models.make` by a config, which has all models'.

    Args:
      config: a checked config.
      num_items: number of items of the dataset.
      levels: the values that ratings have, where contexts are made of them.
    """
    arguments = dict(config["model"])
    conditioning = arguments.pop("reward")
    embed = arguments.pop("item_embeddings")
    arguments["num_items"] = num_items if embed else 0
    arguments["levels"] = tuple(levels)
    known = reward_models.attributes(conditioning)
    own = {name: value for name, value in arguments.items() if name in known}
    return {**own, "conditioning": conditioning}


def build_optimizer(
    config: Config, *, decays_stacked_scales: bool = False
) -> optax.GradientTransformation:
    """Makes the optimizer of a checked config; `make_optimizer` has the keyword."""
    settings = config["train"]
    optimizer = make_optimizer(
        **config["optimizer"],
        steps=settings["steps"],
        decays_stacked_scales=decays_stacked_scales,
    )
    return skip_not_finite(optimizer) if settings["skip_bad_steps"] else optimizer


def build_runner(
    config: Config,
    loss_fn: LossFn,
    rules: Rules,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
) -> Runner:
    """Makes the runner of a run's steps.

    Args:
      config: a checked config.
      loss_fn: the loss of the run.
      rules: sharding rules of the run.
      optimizer: the optimizer of its parameters.
      mesh: a mesh of the config's sizes, whose devices need not exist; by default one
        of all devices.

    Raises:
      InputError: if the mesh or the batch does not fit the devices.
    """
    settings = config["train"]
    names = ("batch_size", "average_decay", "accumulate")
    given = {name: settings[name] for name in names}
    if settings["parallel"] == "pmap":
        return PmapRunner(loss_fn, optimizer, **given)
    mesh = mesh or make_mesh(**config["mesh"])
    return MeshRunner(loss_fn, optimizer, mesh=mesh, rules=rules, **given)


def validation_scores(
    predictions: Predictions, num_context: Sequence[int]
) -> dict[str, float]:
    """Returns NLL and accuracy at each context size; `score` is the mean NLL.

    Of a model that infers z by steps, `converged` is the share of contexts after which
    they arrived.
    """
    nll = user_means(-predictions.log_prob, predictions.mask).mean(0)
    accuracy = user_means(right(predictions.log_prob), predictions.mask).mean(0)
    values = {"score": np.mean(nll)}
    for n, own_nll, own_accuracy in zip(num_context, nll, accuracy, strict=True):
        values |= {f"nll_at_{n}": own_nll, f"accuracy_at_{n}": own_accuracy}
    if predictions.converged is not None:
        values["converged"] = np.mean(predictions.converged)
    return values
