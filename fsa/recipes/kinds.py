"""The kinds of run, and the functions that each kind has for training.

`fsa.recipes.evaluate` has those for evaluation, so that training does not import plots.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fsa.inference.saved_model import LANGUAGE_MODEL, POLICY, REWARD_MODEL
from fsa.recipes import language_model_run, policy_run, reward_model_run
from fsa.recipes.config import Config
from fsa.recipes.run import AbstractRun, Run


class Kind(NamedTuple):
    """The functions of one kind of run.

    Attributes:
      build: builds the run of a checked config, given random keys for the initial
        parameters and for validation.
      abstract: returns the shapes of the same run, for dry runs.
      prepare: completes a config before its run begins or goes on, given the config
        that the run has recorded, if any; refuses it if inputs are missing.
    """

    build: Callable[[Config, jax.Array, jax.Array], Run]
    abstract: Callable[[Config], AbstractRun]
    prepare: Callable[[Config, Config | None], Config] = lambda config, _: config


RECIPES = {
    REWARD_MODEL: Kind(
        build=reward_model_run.build,
        abstract=reward_model_run.abstract,
        prepare=reward_model_run.prepare,
    ),
    POLICY: Kind(
        build=policy_run.build,
        abstract=policy_run.abstract,
        prepare=policy_run.prepare,
    ),
    LANGUAGE_MODEL: Kind(
        build=language_model_run.build,
        abstract=language_model_run.abstract,
    ),
}
