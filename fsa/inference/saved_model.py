"""What a checkpoint says about its model: written by training, read by who loads it.

The description is the JSON `meta` of a checkpoint, see `Checkpoints.save`. It has the
config of the run and everything else that it takes to build the model again.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from fsa.errors import InputError
from fsa.language.transformer import Transformer
from fsa.models.policy import Policy
from fsa.models.reward import RewardModel
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
    """The description of a reward model.

    Args:
      config: of its run.
      model: the arguments of its `RewardModel`.
      deterministic: whether predictions use the mean of z alone.
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
    """The description of a policy.

    Args:
      config: of its run.
      model: the arguments of its `RewardModel`.
      policy: the other arguments of its `Policy`, but for the language model.
      tokenization: the arguments of its `Tokenization`, but for the tokenizer.
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
    """The description of a language model, which is saved as a folder as well."""
    return {"kind": LANGUAGE_MODEL, "config": dict(config)}


def make_policy(description: Description, language_model: Transformer) -> Policy:
    """The policy of a description, for a language model with the biases it shifts."""
    return Policy(
        language_model,
        RewardModel(**description["model"]),
        **policy_arguments(description["policy"]),
    )


def policy_arguments(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Policy` from JSON or a config, whose lists are tuples there."""
    return {
        **policy,
        "modulations": tuple(map(tuple, policy["modulations"])),
        "trunk": tuple(policy["trunk"]),
    }


@contextlib.contextmanager
def open_best(
    workdir: epath.PathLike, kind: str
) -> Iterator[tuple[Description, Callable[..., Any]]]:
    """Opens the best checkpoint of a run.

    Args:
      workdir: the run directory.
      kind: one of `KINDS`.

    Yields:
      Its description, and `restore(like=None)`, which gives the variables. `like` is a
      tree of shapes, and shardings where wanted; by default as they were saved.

    Raises:
      InputError: if there is no sound checkpoint, or it is of another kind.
    """
    folder = epath.Path(workdir).absolute() / "checkpoints"
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
    """Of a description from before it said so."""
    if "language_model" in description:
        return POLICY
    return REWARD_MODEL if "model" in description else LANGUAGE_MODEL
