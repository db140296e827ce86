"""Descriptions of trained models, by which they are built again from checkpoints.

A description is saved with every checkpoint as its JSON `meta`, see `Checkpoints.save`.
It holds the config of the run and everything else that is needed to build its model.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from fsa.errors import InputError
from fsa.language.transformer import Transformer
from fsa.models.policy import Policy
from fsa.models.reward import RewardModel
from fsa.training import run_directory
from fsa.training.checkpoint import VARIABLES, Checkpoints

REWARD_MODEL, POLICY, LANGUAGE_MODEL = KINDS = (
    "reward_model",
    "policy",
    "language_model",
)

_ARTICLES = {name: f"a {name.replace('_', ' ')}" for name in KINDS}

Description = dict[str, Any]


def describe_reward_model(
    config: Mapping[str, Any], model: Mapping[str, Any], *, deterministic: bool
) -> Description:
    """Describes a reward model.

    Args:
      config: the config of its run.
      model: the arguments of its `RewardModel`.
      deterministic: whether predictions use the posterior mean of z alone.
    """
    return {
        "kind": REWARD_MODEL,
        "config": dict(config),
        "model": dict(model),
        "deterministic": deterministic,
    }


def describe_policy(
    config: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    policy: Mapping[str, Any],
    tokenization: Mapping[str, Any],
    groups: tuple[str, ...],
) -> Description:
    """Describes a policy.

    Args:
      config: the config of its run.
      model: the arguments of its `RewardModel`.
      policy: the arguments of its `Policy`, without language model and reward model.
      tokenization: the arguments of its `Tokenization`, without the tokenizer.
      groups: names of the groups of users that it was trained on.
    """
    return {
        "kind": POLICY,
        "config": dict(config),
        "model": dict(model),
        "policy": dict(policy),
        "language_model": config["language_model"],
        "tokenization": dict(tokenization),
        "pooling": config["task"]["pooling"],
        "buckets": config["task"]["buckets"],
        "groups": groups,
    }


def describe_language_model(config: Mapping[str, Any]) -> Description:
    """Describes a language model, which is saved as a Hugging Face folder as well."""
    return {"kind": LANGUAGE_MODEL, "config": dict(config)}


def make_policy(description: Description, language_model: Transformer) -> Policy:
    """Builds the policy of a description.

    Args:
      description: of a policy.
      language_model: its language model, with biases on the maps that are `shifted`.
    """
    arguments = dict(description["policy"])
    # JSON and configs have lists where `Policy` has tuples.
    arguments["modulations"] = tuple(map(tuple, arguments["modulations"]))
    arguments["trunk"] = tuple(arguments["trunk"])
    return Policy(language_model, RewardModel(**description["model"]), **arguments)


@contextlib.contextmanager
def open_best(
    workdir: epath.PathLike, kind: str
) -> Iterator[tuple[Description, Callable[..., Any]]]:
    """Opens the best checkpoint of a run.

    Args:
      workdir: the run directory.
      kind: one of `KINDS`.

    Yields:
      Its description, and `restore(like=None)`, which returns the variables. `like` is
      a tree of shapes, with shardings if wanted; by default, of the saved shapes.

    Raises:
      InputError: if there is no sound checkpoint, or the run is of another kind.
    """
    folder = run_directory.locate(workdir) / "checkpoints"
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        step = checkpoints.best_step
        if step is None:
            raise InputError(f"{workdir}: no sound checkpoint there; train it first")
        description = checkpoints.meta(step)
        found = description.get("kind") or _kind_of(description)
        if found != kind:
            raise InputError(
                f"{workdir}: a run of {_ARTICLES[found]}; name one of {_ARTICLES[kind]}"
            )

        def restore(like: Any = None) -> Any:
            like = checkpoints.shapes(step, VARIABLES) if like is None else like
            return checkpoints.restore(step, {VARIABLES: like})[VARIABLES]

        yield description, restore


def _kind_of(description: Description) -> str:
    """Returns the kind of a description that was written before the field `kind`."""
    if "language_model" in description:
        return POLICY
    return REWARD_MODEL if "model" in description else LANGUAGE_MODEL
