"""A run of a policy: NP-DPO, or DPO with or without labelled groups.

z is inferred by a reward model. Where `policy.reward_model` names a run of one, it is
frozen, and the policy is the second of two stages; otherwise both are trained here.

`build` calls, in this order, `load_language_model` (onto a mesh), `load_task` (reads
and scores the choices) and `assemble` (makes the policy's variables). For a dry run
`abstract` calls `assemble` under `jax.eval_shape`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fsa import bars
from fsa.conditioning.spec import resolve
from fsa.data.tasks.linear_probe import probe
from fsa.data.tasks.packing import AUTO, PADDED, ROWS
from fsa.data.tasks.pairs import PairTask, batch_shapes, packed_shapes
from fsa.data.tasks.task import VALID
from fsa.errors import InputError
from fsa.evaluation.implicit_reward import PolicyPredictor
from fsa.inference import saved_model
from fsa.language.attention_kernels import SPLASH
from fsa.language.huggingface import architecture
from fsa.language.language_model import LanguageModel
from fsa.language.poolings import num_features
from fsa.language.token_table import EQUAL
from fsa.language.transformer import Transformer
from fsa.models.policy import SHARDING_RULES, Policy, shifted, spec_of
from fsa.parallel.examples import parts_of
from fsa.parallel.sharding import make_mesh
from fsa.recipes import given_reward, responses
from fsa.recipes.config import PACKABLE, Config
from fsa.recipes.given_reward import GivenReward
from fsa.recipes.responses import (
    abstract_language_model,
    load_language_model,
    tokenization_options,
)
from fsa.recipes.run import (
    AbstractRun,
    Run,
    model_arguments,
    tell_how_to_evaluate,
    validation_scores,
)
from fsa.training import policy_loss
from fsa.training.run_directory import flatten
from fsa.training.step import LossFn

# Added to the score of an untrained policy; in nats, above the score of any policy.
_NO_POLICY = 1e3
# Tokens of the longest text from which on rows pay. For texts of up to 33 tokens and a
# model of width 64 a step took 0.88 of the time, but 20 seconds more to compile, once
# for each length of rows.
_WORTH_PACKING = 128
# Users of whom reward differences are drawn to measure how large they are.
_SCALE_USERS = 256


def build(config: Config, init_key: jax.Array, valid_key: jax.Array) -> Run:
    """Builds the run of a checked config, see `fsa.recipes.kinds.Kind`.

    Prints the accuracy of a linear probe of the embeddings.
    """
    del valid_key
    # A reward model of other features is refused before responses are scored.
    given = given_reward.load(config)
    mesh = make_mesh(**config["mesh"])
    language = load_language_model(config, mesh)
    base = language.variables
    described = architecture.read_config(config["language_model"]["path"])
    check_modulations(config["policy"]["modulations"], base, described)
    task = load_task(config, language)
    for group, accuracy in probe(task).items():
        share = f"{100 * accuracy:.0f}% of choices"
        bars.print_line(f"Linear probe on embeddings, {group}: {share}")
    if len(task.groups) == 1:
        bars.print_line("  of everybody together: people who disagree cancel out here.")
        bars.print_line(
            "  With a column `group` in the table, each group has its own probe."
        )
    policy = make_policy(config, language.model, len(task.groups), given)
    variables, constants = assemble(policy, base, task.statistics(), init_key, given)
    task = _with_candidates(config, policy, variables, task)
    constants |= _reward_scale(config, policy, variables, task)
    sizes, sample = tuple(config["eval"]["num_context"]), config["eval"]["valid_sample"]
    predict = PolicyPredictor(
        policy,
        task,
        VALID,
        num_context=sizes if sample is None else sizes[-1:],
        episodes_per_user=config["eval"]["valid_episodes_per_user"],
        beta=config["dpo"]["beta"],
        diagnose=False,
        users_at_once=config["eval"]["users_at_once"],
        max_users=sample,
        mesh=mesh,
        progress=False,
    )

    def validate(state):
        predictions = predict(state.variables, constants["base"])
        scores = validation_scores(predictions, predict.num_context)
        if state.step <= config["dpo"]["reward_steps"]:
            # The policy is untrained, and its score could beat that of later steps.
            scores["score"] += _NO_POLICY
        return scores

    return Run(
        variables=variables,
        loss_fn=build_loss(config, policy, _rows_at_once(config, task, mesh)),
        constants=constants,
        make_examples=task.train_batch,
        validate=validate,
        sharding_rules=SHARDING_RULES,
        description=saved_model.describe_policy(
            config,
            **_policy_arguments(config, len(task.groups), given),
            tokenization=tokenization_options(config),
            groups=task.groups,
        ),
        finish=tell_how_to_evaluate,
        data=task.data,
    )


class AbstractPolicy(NamedTuple):
    """A policy whose arrays are `jax.ShapeDtypeStruct`s.

    Attributes:
      policy: the policy, with its language model.
      variables: its own variables.
      constants: the arrays that all examples share, such as the language model's.
      base: the language model's variables, also if they are trained.
      num_features: number of features of an option.
    """

    policy: Policy
    variables: Any
    constants: dict[str, Any]
    base: Any
    num_features: int


def abstract_policy(config: Config) -> AbstractPolicy:
    """Returns the policy of a checked config; reads no weights and no choices.

    Raises:
      InputError: if the shapes of the language model are missing.
    """
    settings = config["language_model"]
    modulations = config["policy"]["modulations"]
    described = dict(settings["shape"])
    described = described or architecture.read_config(settings["path"])
    model, base = abstract_language_model(
        described,
        dtype=settings["dtype"],
        remat=settings["remat"],
        attention=settings["attention"],
        biases=shifted(modulations),
    )
    check_modulations(modulations, base, described)
    # The number of groups is in the data, which are not read; two are the fewest.
    given = given_reward.load(config)
    policy = make_policy(config, model, 2, given)
    features = num_features(config["task"]["pooling"], model.width)
    width = jax.ShapeDtypeStruct((features,), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables, constants = jax.eval_shape(
        functools.partial(assemble, policy, given=given), base, (width, width), key
    )
    return AbstractPolicy(policy, variables, constants, base, features)


def abstract(config: Config) -> AbstractRun:
    """Returns the shapes of a run; reads no weights and no choices.

    Raises:
      InputError: if the shapes of the language model are missing.
    """
    policy, variables, constants, _, features = abstract_policy(config)
    task = config["task"]
    if config["dpo"]["loss"] == policy_loss.DISTILLATION:
        constants["reward_std"] = jax.ShapeDtypeStruct((), jnp.float32)
    examples = batch_shapes(
        batch_size=config["train"]["batch_size"],
        max_context=task["max_context"],
        num_targets=task["num_targets"],
        num_pairs=task["num_pairs"],
        num_features=features,
        length=max(task["buckets"]),
    )
    rows_at_once = 1
    if task["packing"] == ROWS:
        if not _uses_splash(config):
            raise InputError(
                "config.task.packing: rows are compiled in advance for "
                f"language_model.attention={SPLASH} alone; use {PADDED}"
            )
        examples = packed_shapes(examples)
        every = math.prod(examples.rows[0].pair.shape)
        rows_at_once = task["rows_at_once"] or every
    return AbstractRun(
        variables=variables,
        loss_fn=build_loss(config, policy, rows_at_once),
        constants=constants,
        examples=examples,
        sharding_rules=SHARDING_RULES,
        trains_all=policy.train_base,
    )


def prepare(config: Config, recorded: Config | None) -> Config:
    """Completes a config, see `fsa.recipes.kinds.Kind`."""
    config = responses.pin_language_model(config, recorded)
    return given_reward.pin(config, recorded)


def make_policy(
    config: Config,
    model: Transformer,
    num_groups: int,
    given: GivenReward | None = None,
) -> Policy:
    """Makes the policy of a checked config and its language model.

    Args:
      config: a checked config.
      model: the language model, with the biases that z shifts.
      num_groups: number of groups of users in the data.
      given: the reward model that gives z, if it is not trained here.
    """
    return saved_model.make_policy(_policy_arguments(config, num_groups, given), model)


def _policy_arguments(
    config: Config, num_groups: int, given: GivenReward | None
) -> dict[str, Any]:
    """Returns what a description says about a policy apart from its language model."""
    own = dict(config["policy"])
    del own["reward_model"], own["reward_digest"]
    return {
        "model": given.arguments if given else model_arguments(config, 0),
        "policy": {
            **own,
            "num_groups": num_groups,
            "frozen_reward": given is not None,
        },
    }


def assemble(
    policy: Policy,
    base: Any,
    statistics: tuple,
    key: jax.Array,
    given: GivenReward | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Makes the variables and the constants of a run.

    Args:
      policy: the policy to train.
      base: the language model's variables.
      statistics: mean and standard deviation of the embeddings, `[F]` each.
      key: a JAX random key.
      given: the reward model that gives z, if it is not trained here.

    Returns:
      (initial variables, constants). The language model is among the variables if it is
      trained, else among the constants.
    """
    variables = policy_loss.init_variables(
        policy, base, statistics, key, given and given.variables
    )
    return variables, {"base": None if policy.train_base else base}


def _with_candidates(
    config: Config, policy: Policy, variables: Any, task: PairTask
) -> PairTask:
    """Returns the task that draws several pairs for each, if the config says so."""
    candidates = config["task"]["candidates"]
    if candidates == 1:
        return task
    somebody = task.test_batch(VALID, task.users(VALID)[:1], 0).episode
    rewards = policy_loss.rewards_of_people(
        policy,
        variables,
        task.in_range(task.responses.features),
        jax.tree.map(lambda x: x[0], somebody.context),
        jax.random.key(config["seed"]),
    )
    return dataclasses.replace(task, rewards=rewards, candidates=candidates)


def _reward_scale(
    config: Config, policy: Policy, variables: Any, task: PairTask
) -> dict[str, jax.Array]:
    """Returns the constant that distillation has beside the language model."""
    if config["dpo"]["loss"] != policy_loss.DISTILLATION:
        return {}
    if task.num_free:
        bars.print_line(
            f"Pairs are drawn from {task.num_free:,} responses that nobody chose "
            "between."
        )
    users = config["train"]["batch_size"]
    batches = range(-(-_SCALE_USERS // users))
    found = policy_loss.reward_std(
        policy,
        variables,
        [task.train_batch(step).episode for step in batches],
        jax.random.key(config["seed"]),
    )
    bars.print_line(
        f"Reward differences have a standard deviation of {found:.1f} nats, which is "
        "the unit of dpo.clip."
    )
    return {"reward_std": found}


def build_loss(config: Config, policy: Policy, rows_at_once: int = 1) -> LossFn:
    """Makes the loss of a checked config."""
    objective = config["objective"]
    return policy_loss.make_loss(
        policy,
        **config["dpo"],
        objective=objective["name"],
        kl_weight=objective["beta"],
        num_samples=objective["num_samples"],
        rows_at_once=rows_at_once,
    )


def check_modulations(
    modulations: Sequence[tuple[str, str]], base: Any, described: Mapping[str, Any]
) -> None:
    """Refuses modulations that do not fit; warns if they cannot be exported.

    Args:
      modulations: see `fsa.models.policy.spec_of`.
      base: the language model's variables.
      described: the content of its config.json.

    Raises:
      InputError: if modulations do not fit the parameters.
    """
    try:
        resolve(spec_of(modulations), base)
    except ValueError as error:
        raise InputError(f"config.policy.modulations: {error}") from error
    try:
        architecture.with_bias_fields(described, shifted(modulations), "config.json")
    except InputError as error:
        # Such a policy can still be evaluated and steered.
        bars.print_line(f"Warning: fsa steer --export will be refused: {error}")


def is_packed(config: Config, longest: int) -> bool:
    """Returns whether the texts of a run's choices share rows in training.

    Args:
      config: a checked config.
      longest: tokens of the longest prompt with its response.
    """
    packing = config["task"]["packing"]
    if packing != AUTO:
        return packing == ROWS
    flat = flatten(config)
    fits = all(flat[name] in wanted for name, wanted in PACKABLE.items())
    # Rows on TPUs have been compiled and never been timed, so they have to be wanted.
    timed = jax.default_backend() == "cpu" and not _uses_splash(config)
    return fits and longest >= _WORTH_PACKING and timed


def _uses_splash(config: Config) -> bool:
    return config["language_model"]["attention"] == SPLASH


def _rows_at_once(config: Config, task: PairTask, mesh: Mesh) -> int:
    """Returns how many rows of a packed batch a device computes at once.

    Where parameters are gathered from other devices, rows one after the other would
    gather them again for each. A CPU is as fast with one row, which takes least memory.
    """
    given = config["task"]["rows_at_once"]
    if given or not (task.packed and _uses_splash(config)):
        return given or 1
    return task.rows_at_once(parts_of(mesh))


def load_task(config: Config, language: LanguageModel) -> PairTask:
    """Reads the choices of a checked config and their scores by its language model.

    Args:
      config: a checked config.
      language: the language model.

    Raises:
      InputError: as `fsa.recipes.responses.load_embedded`.
    """
    settings, evaluation = config["task"], config["eval"]
    data, scored = responses.load_embedded(config, language)
    task = PairTask(
        data,
        scored,
        batch_size=config["train"]["batch_size"],
        max_context=settings["max_context"],
        min_context=settings["min_context"],
        num_targets=settings["num_targets"],
        num_pairs=settings["num_pairs"],
        any_pairs=config["dpo"]["loss"] == policy_loss.DISTILLATION,
        test_context=max(evaluation["num_context"]),
        test_targets=evaluation["num_targets"],
        buckets=tuple(settings["buckets"]),
        packed=is_packed(config, int(scored.tokens.length.max())),
        together=_uses_splash(config),
        seed=config["seed"],
    )
    if task.num_equal:
        bars.print_line(f"Left out {task.num_equal:,} choices: {EQUAL}")
    return task
