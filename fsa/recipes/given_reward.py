"""Reads the reward model that gives z to a policy: the first of two stages.

The reward model is a run of its own, `task.name=responses`. The policy keeps a copy of
its variables, so a trained policy no longer needs that run.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.recipes.config import Config
from fsa.recipes.responses import FEATURE_FIELDS
from fsa.training.run_directory import flatten

_FIELD = "config.policy.reward_model"


class GivenReward(NamedTuple):
    """A trained reward model.

    Attributes:
      arguments: what it is built from, see `fsa.models.reward_models.make`.
      variables: its Flax variables.
    """

    arguments: dict[str, Any]
    variables: Any


def pin(config: Config, recorded: Config | None = None) -> Config:
    """Adds the digest of the given reward model to a config, if there is one.

    Args:
      config: a checked config.
      recorded: the config that the run was begun with, if it was.

    Raises:
      InputError: if there is no such run, or it is not the one of the config or of the
        record; the message names both digests.
    """
    policy = config["policy"]
    if not policy["reward_model"]:
        return config
    begun = (recorded or {}).get("policy", {}).get("reward_digest", "")
    wanted = policy["reward_digest"] or begun
    with _opened(config) as (description, _):
        found = description["origin"]["checkpoint"]
    if wanted not in ("", found):
        raise InputError(
            f"{_FIELD}={policy['reward_model']}: its best checkpoint is {found}, and "
            f"the policy was begun with {wanted}; put that run back, or use another "
            "`workdir`"
        )
    return {**config, "policy": {**policy, "reward_digest": found}}


def load(config: Config) -> GivenReward | None:
    """Loads the reward model that a checked config names; None if it names none.

    Raises:
      InputError: if it was not trained on the features that the policy reads.
    """
    if not config["policy"]["reward_model"]:
        return None
    with _opened(config) as (description, restore):
        _check_features(config, description["config"])
        return GivenReward(description["model"], jax.device_get(restore()))


@contextlib.contextmanager
def _opened(config: Config) -> Iterator[tuple[saved_model.Description, Any]]:
    """Opens the run that a config names; errors name the field."""
    path = config["policy"]["reward_model"]
    try:
        opened = contextlib.ExitStack()
        found = opened.enter_context(
            saved_model.open_best(path, saved_model.REWARD_MODEL)
        )
    except InputError as error:
        raise InputError(f"{_FIELD}={path}: {error}") from error
    with opened:
        yield found


def _check_features(config: Config, trained: Config) -> None:
    """Refuses a reward model of other features, by the first field that differs."""
    path = config["policy"]["reward_model"]
    if trained["task"]["name"] != saved_model.RESPONSES:
        raise InputError(
            f"{_FIELD}={path}: its task.name is {trained['task']['name']!r}; train one "
            f"with task.name={saved_model.RESPONSES}"
        )
    own, other = flatten(config), flatten(trained)
    if not own["language_model.digest"]:
        # A dry run reads no language model.
        own["language_model.digest"] = other["language_model.digest"]
    for name in ("language_model.digest", *FEATURE_FIELDS):
        if own[name] != other[name]:
            raise InputError(
                f"{_FIELD}={path}: it was trained with {name}={other[name]!r}, and "
                f"here it is {own[name]!r}; make them equal"
            )
    if not trained["model"]["latent_dim"]:
        raise InputError(
            f"{_FIELD}={path}: it has no z; train one with model.latent_dim above 0"
        )
