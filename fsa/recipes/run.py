"""What every run consists of, whatever its kind."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from fsa.evaluation.predictions import Predictions
from fsa.evaluation.scores import right, user_means
from fsa.parallel.sharding import Rules, make_mesh
from fsa.recipes.config import Config
from fsa.training.monitor.finite import skip_not_finite
from fsa.training.runner import MakeExamples, MeshRunner, PmapRunner, Runner
from fsa.training.step import LossFn, TrainState, make_optimizer


class Run(NamedTuple):
    """What `fsa.training.loop.train` needs besides an optimizer and folders.

    Attributes:
      variables: initial Flax variables.
      loss_fn: loss of batches `(constants, examples)`.
      constants: arrays that all examples share.
      make_examples: makes examples of the global batch of a step.
      validate: metrics of a state on held-out users, with `score` to minimise.
      sharding_rules: how parameters and constants are split over a mesh.
      description: JSON saved with every checkpoint, see `fsa.inference.saved_model`.
      finish: does what is left at the end, given the run directory; called by all
        processes.
    """

    variables: Any
    loss_fn: LossFn
    constants: Any
    make_examples: MakeExamples
    validate: Callable[[TrainState], dict[str, float]]
    sharding_rules: Rules
    description: dict[str, Any]
    finish: Callable[[TrainState, epath.Path], None]


class AbstractRun(NamedTuple):
    """The parts of a run that its step needs, as `jax.ShapeDtypeStruct`s.

    Attributes:
      variables: Flax variables.
      loss_fn: loss of batches `(constants, examples)`.
      constants: arrays that all examples share.
      examples: examples of one step.
      sharding_rules: how parameters and constants are split over a mesh.
      trains_all: whether gradients of all weights are taken, or only of a few.
    """

    variables: Any
    loss_fn: LossFn
    constants: Any
    examples: Any
    sharding_rules: Rules
    trains_all: bool


def tell_how_to_evaluate(state: TrainState, run_dir: epath.Path) -> None:
    """The `finish` of runs that are evaluated next."""
    del state
    print(f"Next: python -m launch.evaluate --workdir={run_dir}")


def model_arguments(config: Config, num_items: int) -> dict[str, Any]:
    """The arguments of the `RewardModel` of a checked config, for a task's items."""
    arguments = dict(config["model"])
    arguments["conditioning"] = arguments.pop("reward")
    embed = arguments.pop("item_embeddings")
    return {**arguments, "num_items": num_items if embed else 0}


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """The optimizer of a checked config."""
    settings = config["train"]
    optimizer = make_optimizer(**config["optimizer"], steps=settings["steps"])
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
      config: checked.
      loss_fn: of the run.
      rules: sharding rules of the run.
      optimizer: of its parameters.
      mesh: of the config's own sizes, for devices that need not be there; made of all
        devices by default.

    Raises:
      InputError: for a mesh or a batch that does not fit them.
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
    """NLL and accuracy at each context size; the score is the mean NLL over them."""
    nll = user_means(-predictions.log_prob, predictions.mask).mean(0)
    accuracy = user_means(right(predictions.log_prob), predictions.mask).mean(0)
    values = {"score": np.mean(nll)}
    for n, own_nll, own_accuracy in zip(num_context, nll, accuracy, strict=True):
        values |= {f"nll_at_{n}": own_nll, f"accuracy_at_{n}": own_accuracy}
    return values
