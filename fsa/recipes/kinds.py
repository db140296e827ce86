"""The kinds of run: the one place that the field `kind` of a config is looked up in."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fsa.inference.saved_model import LANGUAGE_MODEL, POLICY, REWARD_MODEL
from fsa.recipes import (
    language_model_run,
    policy_evaluation,
    policy_run,
    reward_model_evaluation,
    reward_model_run,
)
from fsa.recipes.config import Config
from fsa.recipes.run import AbstractRun, Run


class Kind(NamedTuple):
    """What can be done with the configs of a kind.

    Attributes:
      build: makes the run of a checked config, given random keys for initial parameters
        and for validation.
      abstract: the same run in shapes, for dry runs.
      evaluate: scores a run directory, given its config; prints tables, writes files.
      prepare: completes a config before its run begins, and refuses what is missing.
    """

    build: Callable[[Config, jax.Array, jax.Array], Run]
    abstract: Callable[[Config], AbstractRun]
    evaluate: Callable[..., Any]
    prepare: Callable[[Config], Config] = lambda config: config


KINDS = {
    REWARD_MODEL: Kind(
        build=reward_model_run.build,
        abstract=reward_model_run.abstract,
        evaluate=reward_model_evaluation.evaluate,
    ),
    POLICY: Kind(
        build=policy_run.build,
        abstract=policy_run.abstract,
        evaluate=policy_evaluation.evaluate,
        prepare=policy_run.pin_language_model,
    ),
    LANGUAGE_MODEL: Kind(
        build=language_model_run.build,
        abstract=language_model_run.abstract,
        evaluate=language_model_run.refuse_evaluation,
    ),
}
