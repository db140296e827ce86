"""Named configs for experiments to start from: models, policies, a language model.

A preset starts from the defaults in `fsa.recipes.fields` and sets the fields that
define the model of its name.
"""

import itertools
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from fsa.errors import InputError, did_you_mean
from fsa.inference.saved_model import LANGUAGE_MODEL, POLICY, REWARD_MODEL
from fsa.models.reward_models import LINEAR
from fsa.recipes.fields import PEOPLE, RESPONSES, defaults
from fsa.training.policy_loss import DISTILLATION

# name: (likelihood, latent_dim, objective, standard_prior, how z enters the reward)
MODELS = {
    "bayes": ("btl", 8, "predictive", False, "linear"),
    "np-btl": ("btl", 4, "ml", False, "concatenated"),
    "np-btl-modulated": ("btl", 4, "ml", False, "modulated"),
    "np-btl-deterministic": ("btl", 4, "deterministic", False, "concatenated"),
    "np-btl-elbo": ("btl", 4, "elbo", False, "concatenated"),
    "vpl": ("btl", 4, "vpl", True, "concatenated"),
    "btl": ("btl", 0, "deterministic", False, "concatenated"),
    "dpl": ("dpl", 0, "deterministic", False, "concatenated"),
}

# The first of two stages, and the second ones with their losses.
REWARD = "reward"
STAGES = {REWARD: "", "distillation": DISTILLATION, "given-np-dpo": "dpo"}

# name: latent, the source of z, see fsa/models/policy.py
POLICIES = {"np-dpo": "inferred", "dpo": "none", "dpo-by-group": "group"}

# For what the modulations by default cannot follow: several attributes, or words.
LARGE_MODULATIONS = tuple(
    (part, "low_rank(32)") for part in ("attention/out", "mlp/up", "mlp/down")
)


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """Raises InputError if what an experiment is asked for is not known.

    Args:
      what: what it is, such as "model".
      name: the name that was given.
      known: the names that there are.
    """
    if name not in known:
        hint = did_you_mean(name, known)
        raise InputError(f"no {what} {name!r}; {hint}there are {', '.join(known)}")


def reward_model(name: str, task: str) -> ConfigDict:
    """Returns the config of a reward model; the experiment sets data and sizes.

    Args:
      name: one of `MODELS`.
      task: one of `fsa.recipes.fields.TASKS`.

    Raises:
      InputError: if `name` is not in `MODELS`.
    """
    check_name("model", name, MODELS)
    likelihood, latent_dim, objective, standard_prior, reward = MODELS[name]
    config = defaults(REWARD_MODEL, task)
    config.model.likelihood = likelihood
    config.model.latent_dim = latent_dim
    config.model.reward = reward
    config.model.standard_prior = standard_prior
    config.objective.name = objective
    return config


def people(name: str = "np-btl") -> ConfigDict:
    """Returns the config of a reward model of real people, whose data the user sets.

    Sizes and rates were chosen on validation people of a public consultation, with 281
    people to train on (docs/results.md), those of `bayes` in folds of its training and
    validation people; they are where to start with other data.

    Args:
      name: one of `MODELS`.

    Raises:
      InputError: if `name` is not in `MODELS`.
    """
    config = reward_model(name, PEOPLE)
    config.task.num_targets = 20
    config.model.hidden = 64
    if config.model.latent_dim:
        config.model.latent_dim = 8
    config.objective.num_samples = 4
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.1
    if config.model.reward == LINEAR:
        config.model.dropout = 0.2
        config.optimizer.learning_rate = 3e-3
    config.train.average_decay = 0.99
    config.eval.num_targets = 30
    config.eval.episodes_per_user = 20
    config.eval.valid_episodes_per_user = 5
    return config


def stage(name: str) -> ConfigDict:
    """Returns the config of one of two stages; the experiment sets data and model.

    Both stages have the same data and the same language model. The second one names the
    run of the first by `policy.reward_model`.

    Args:
      name: one of `STAGES`.

    Raises:
      InputError: if `name` is not in `STAGES`.
    """
    check_name("stage", name, STAGES)
    if name == REWARD:
        config = reward_model("bayes", RESPONSES)
        config.model.hidden = 64
        config.task.num_targets = 16
        config.optimizer.learning_rate = 3e-3
        return config
    config = policy("np-dpo")
    config.dpo.loss = STAGES[name]
    if config.dpo.loss == DISTILLATION:
        # Rewards count in standard deviations, see docs/results.md.
        config.dpo.beta = 0.25
        config.dpo.nll_weight = 0.5
    config.eval.valid_sample = 10
    return config


def policy(name: str) -> ConfigDict:
    """Returns the config of a policy; the experiment sets data and language model.

    Args:
      name: one of `POLICIES`.

    Raises:
      InputError: if `name` is not in `POLICIES`.
    """
    check_name("policy", name, POLICIES)
    config = defaults(POLICY)
    config.policy.latent = POLICIES[name]
    return config


def language_model() -> ConfigDict:
    """Returns the config of a language model that is pretrained on the small corpus."""
    return defaults(LANGUAGE_MODEL)


def grid(**values: tuple) -> list[dict[str, Any]]:
    """Returns all combinations of values of fields, for an experiment's `get_sweep`.

    The first field varies slowest: `grid(**{"model.hidden": (32, 64), "seed": (0, 1)})`
    is `[{"model.hidden": 32, "seed": 0}, {"model.hidden": 32, "seed": 1}, ...]`. Grids
    are lists, so a sweep of several is their sum.
    """
    combinations = itertools.product(*values.values())
    return [dict(zip(values, chosen, strict=True)) for chosen in combinations]
