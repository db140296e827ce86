"""The runs that configs describe, in shapes alone: no weights and no choices are read.

Reward models are the exception: their data are part of the step, and are read.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fsa.data.tasks.pairs import batch_shapes
from fsa.language.huggingface import architecture
from fsa.language.transformer import Transformer, with_biases
from fsa.models.policy import SHARDING_RULES, Policy, shifted
from fsa.models.reward import RewardModel
from fsa.parallel.sharding import Rules
from fsa.recipes.config import model_arguments, policy_arguments
from fsa.recipes.runs import build, check_modulations, policy_loss
from fsa.training import policy_loss
from fsa.training.step import LossFn


class AbstractRun(NamedTuple):
    """A `fsa.recipes.runs.Run` of `jax.ShapeDtypeStruct`s, as far as steps need it.

    Attributes:
      variables: Flax variables.
      loss_fn: of batches `(tables, rows)`.
      tables: what all rows share.
      rows: of one step.
      sharding: where parameters and tables lie on a mesh.
      trains_all: whether gradients of all weights are taken, or few of them trained.
    """

    variables: Any
    loss_fn: LossFn
    constants: Any
    examples: Any
    sharding: Rules
    trains_all: bool


def abstract_run(config: dict[str, Any]) -> AbstractRun:
    """The run of a checked config.

    Raises:
      InputError: if the language model's shapes, or the data of a reward model, are
        missing.
    """
    if config["task"]["name"] == "pairs":
        return _policy_run(config)
    run = build(config, *jax.random.split(jax.random.key(config["seed"])))
    positions = jnp.arange(config["train"]["batch_size"], dtype=jnp.int32)
    parts = (
        run.variables,
        run.constants,
        run.make_examples(0, jax.device_get(positions)),
    )
    variables, constants, examples = jax.eval_shape(lambda: parts)
    return AbstractRun(
        variables, run.loss_fn, constants, examples, run.sharding, trains_all=True
    )


def _policy_run(config: dict[str, Any]) -> AbstractRun:
    settings, task = config["language_model"], config["task"]
    described = dict(settings["shape"]) or architecture.read_config(settings["path"])
    dtype = jnp.dtype(settings["dtype"])
    model = Transformer(
        **architecture.arguments(described, "config.language_model.shape"),
        remat=settings["remat"] or None,
        attention=settings["attention"],
        dtype=dtype,
        param_dtype=dtype,
    )
    # The groups of the data are not known; two are the fewest.
    arguments = policy_arguments(config, 2)
    missing = shifted(arguments["modulations"])
    key = jax.eval_shape(lambda: jax.random.key(0))
    base = jax.eval_shape(model.init, key, jnp.zeros((1, 1), jnp.int32))
    base = jax.eval_shape(lambda base: with_biases(model, base, missing)[1], base)
    model, _ = with_biases(model, base, missing)
    check_modulations(config, base, described)
    modulated = Policy(model, RewardModel(**model_arguments(config, 0)), **arguments)
    features = jnp.zeros(model.width)
    examples = batch_shapes(
        batch_size=config["train"]["batch_size"],
        max_context=task["max_context"],
        num_targets=task["num_targets"],
        num_pairs=task["num_pairs"],
        num_features=model.width,
        length=max(task["buckets"]),
    )
    return AbstractRun(
        variables=jax.eval_shape(
            lambda base, key: policy_loss.init_variables(
                modulated, base, (features, features), key
            ),
            base,
            key,
        ),
        loss_fn=policy_loss(config, modulated),
        # Where the base is trained, the state holds it.
        constants={"base": None if modulated.train_base else base},
        examples=examples,
        sharding=SHARDING_RULES,
        trains_all=modulated.train_base,
    )
