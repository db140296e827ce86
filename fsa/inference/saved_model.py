"""Descriptions of trained models, by which they are built again from checkpoints.

A description is saved with every checkpoint as its JSON `meta`, see `Checkpoints.save`.
It holds the config of the run and everything else that is needed to build its model.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from etils import epath

from fsa.errors import InputError
from fsa.language.transformer import Transformer
from fsa.models import reward_models
from fsa.models.policy import Policy
from fsa.parallel import processes
from fsa.training import run_data, run_directory, run_paths
from fsa.training.checkpoint import VARIABLES, Checkpoints

REWARD_MODEL, POLICY, LANGUAGE_MODEL = KINDS = (
    "reward_model",
    "policy",
    "language_model",
)

_ARTICLES = {name: f"a {name.replace('_', ' ')}" for name in KINDS}

# The command that uses a run of each kind, as one types it.
_COMMANDS = {
    REWARD_MODEL: "use fsa predict --workdir={run}",
    POLICY: "use fsa steer --workdir={run}",
    LANGUAGE_MODEL: "use fsa sample --model={run}/model",
}

# The task of reward models whose options are texts that a language model embeds as it
# does for a policy.
RESPONSES = "responses"

Description = dict[str, Any]

_Loaded = TypeVar("_Loaded")


def data_parts(kind: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what a run takes from its dataset, of `fsa.training.run_data.PARTS`.

    The options of policies are texts, whose features a language model computes.

    Args:
      kind: one of `KINDS`.
      config: the config of the run.
    """
    if kind == LANGUAGE_MODEL:
        return ()
    embeds = kind == POLICY or config.get("task", {}).get("name") == RESPONSES
    return ("choices",) if embeds else run_data.PARTS


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
      model: the arguments of its reward model.
      policy: the arguments of its `Policy`, without language model and reward model.
      tokenization: the arguments of its `Tokenization`, without the tokenizer.
      groups: names of the groups of users that it was trained on.
    """
    return {
        "kind": POLICY,
        "config": dict(config),
        "model": dict(model),
        "policy": dict(policy),
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
    reward_model = reward_models.make(description["model"])
    return Policy(language_model, reward_model, **arguments)


@contextlib.contextmanager
def open_best(
    workdir: epath.PathLike, kind: str
) -> Iterator[tuple[Description, Callable[..., Any]]]:
    """Opens the best checkpoint of a run.

    Args:
      workdir: the run directory.
      kind: one of `KINDS`.

    Yields:
      Its description, with paths that can be opened from here and what names the
      checkpoint under `origin`, and `restore(like=None)`, which returns the variables.
      `like` is a tree of shapes, with shardings if wanted; by default, of the saved
      shapes.

    Raises:
      InputError: if there is no sound checkpoint, or the run is of another kind.
    """
    folder = run_directory.locate(workdir) / "checkpoints"
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        step, description = _best(checkpoints, workdir)
        found = description["kind"]
        if found != kind:
            raise InputError(
                f"{workdir}: a run of {_ARTICLES[found]}, not of {_ARTICLES[kind]}; "
                f"{how_to_use(found, workdir)}"
            )

        def restore(like: Any = None) -> Any:
            like = checkpoints.shapes(step, VARIABLES) if like is None else like
            return checkpoints.restore(step, {VARIABLES: like})[VARIABLES]

        yield description, restore


def look_again(load: Callable[..., _Loaded]) -> Callable[..., _Loaded]:
    """Makes a function that reads checkpoints begin again once if a file is gone.

    A training that goes on deletes the steps that it no longer needs.
    """

    @functools.wraps(load)
    def loading(*args: Any, **kwargs: Any) -> _Loaded:
        try:
            return load(*args, **kwargs)
        except FileNotFoundError:
            return load(*args, **kwargs)

    return loading


@look_again
def describe_best(workdir: epath.PathLike) -> Description:
    """Returns the description of the best checkpoint of a run of any kind.

    It is the one that `open_best` yields, and has the `kind`.

    Raises:
      InputError: if there is no sound checkpoint.
    """
    folder = run_directory.locate(workdir) / "checkpoints"
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        return _best(checkpoints, workdir)[1]


def _best(checkpoints: Checkpoints, workdir: epath.PathLike) -> tuple[int, Description]:
    """Returns the step of the best checkpoint, and its description with the kind."""
    step = checkpoints.best_step
    if step is None:
        why = "".join(f"; {each}" for each in checkpoints.unused)
        raise InputError(f"{workdir}: no sound checkpoint{why}; train it first")
    description = checkpoints.meta(step)
    description.setdefault("kind", _kind_of(description))
    description["config"] = _with_paths(description["config"], workdir)
    description["origin"] = {
        "checkpoint": checkpoints.digest(step),
        "step": step,
        **_inputs_of(description),
    }
    return step, description


def how_to_use(kind: str, workdir: epath.PathLike) -> str:
    """Returns in words the command that uses a run of a kind."""
    return _COMMANDS[kind].format(run=os.fspath(workdir))


@look_again
def data_of(
    workdir: epath.PathLike, description: Description | None = None
) -> run_data.Identity | None:
    """Returns the identity of the dataset that a run was trained on.

    The run directory has it in `data.json`. If that is lost, the checkpoints have it.
    All processes of a run must call this.

    Args:
      workdir: the run directory.
      description: of its checkpoint, if it was opened already.

    Returns:
      The identity; None for simulated users and for runs of older versions.

    Raises:
      InputError: if `data.json` is damaged.
    """
    if known := processes.on_first(lambda: run_data.recorded(workdir)):
        return known
    if description is None:
        folder = run_directory.locate(workdir) / "checkpoints"
        with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
            step = checkpoints.latest_step
            description = {} if step is None else checkpoints.meta(step)
    return description.get("data")


def checked_data(
    workdir: epath.PathLike, description: Description, given: epath.PathLike | None
) -> str | None:
    """Returns the folder of a run's dataset; None for simulated users.

    Args:
      workdir: the run directory.
      description: of its checkpoint, from `open_best`.
      given: where the dataset is, if it has moved.

    Raises:
      InputError: if another dataset is there. If there is none, that is left to those
        who read it: a trained model can do without.
    """
    path = description["config"].get("task", {}).get("path")
    if given is not None and path is None:
        raise InputError(f"`data`={given}: {workdir} was trained on simulated users")
    if given is None and (path is None or not run_data.is_there(path)):
        return path
    path = os.fspath(path if given is None else given)
    run_data.check(
        workdir,
        path,
        data_parts(
            description.get("kind") or _kind_of(description), description["config"]
        ),
        "restore the original dataset, or say with `data` where it is",
        known=data_of(workdir, description),
    )
    return path


def _with_paths(config: Mapping[str, Any], workdir: epath.PathLike) -> dict[str, Any]:
    """Returns the config of a checkpoint with the paths of data and language model."""
    if (run_directory.locate(workdir) / "config.json").exists():
        # It knows if they have moved since the checkpoint was saved.
        config = run_paths.with_paths_of(run_directory.read_config(workdir), config)
    return run_paths.from_saved(config, workdir)


def _inputs_of(description: Description) -> dict[str, str]:
    """Returns the digests of what a run was trained on, as far as it recorded them."""
    found = {
        "choices": (description.get("data") or {}).get("choices"),
        "language_model": description["config"].get("language_model", {}).get("digest"),
    }
    return {name: digest for name, digest in found.items() if digest}


def _kind_of(description: Description) -> str:
    """Returns the kind of a description that was written before the field `kind`."""
    if "language_model" in description:
        return POLICY
    return REWARD_MODEL if "model" in description else LANGUAGE_MODEL
