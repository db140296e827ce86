"""A run of a policy: NP-DPO, or DPO with or without labelled groups.

`build` calls, in this order, `load_language_model` (onto a mesh), `load_task` (reads
and scores the choices) and `assemble` (makes the policy's variables). For a dry run
`abstract` calls `assemble` under `jax.eval_shape`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fsa import bars
from fsa.conditioning.spec import resolve
from fsa.data import dataset, scored_responses
from fsa.data.tasks.linear_probe import probe
from fsa.data.tasks.pairs import PairTask, batch_shapes, check_buckets, check_choices
from fsa.data.tasks.task import VALID
from fsa.errors import InputError
from fsa.evaluation.implicit_reward import PolicyPredictor
from fsa.inference import saved_model
from fsa.language import attention_kernels, huggingface, scoring
from fsa.language.huggingface import architecture
from fsa.language.language_model import LanguageModel
from fsa.language.token_table import EQUAL
from fsa.language.transformer import Transformer, with_biases
from fsa.models.policy import SHARDING_RULES, Policy, shifted, spec_of
from fsa.parallel.processes import is_first
from fsa.parallel.sharding import make_mesh, place, sharding_of, shardings
from fsa.recipes.config import Config
from fsa.recipes.run import (
    AbstractRun,
    Run,
    model_arguments,
    tell_how_to_evaluate,
    validation_scores,
)
from fsa.training import policy_loss
from fsa.training.step import LossFn

# Added to the score of an untrained policy; in nats, above the score of any policy.
_NO_POLICY = 1e3


def pin_language_model(config: Config, recorded: Config | None = None) -> Config:
    """Adds the digest of its language model to a config, so that the run keeps to it.

    Args:
      config: a checked config.
      recorded: the config that the run was begun with, if it was. The digest in it is
        kept, if it is that of the model by the rules of an older version.

    Raises:
      InputError: if the folder cannot be loaded, or the config has another digest.
    """
    settings = config["language_model"]
    huggingface.check(settings["path"])
    found = huggingface.digest(settings["path"])
    begun = (recorded or {}).get("language_model", {}).get("digest", "")
    known = settings["digest"] or begun
    if known not in ("", found) and huggingface.has_digest(settings["path"], known):
        found = known
    if settings["digest"] not in ("", found):
        raise InputError(
            f"config.language_model.digest: {settings['path']} has {found}, not "
            f"{settings['digest']}; it is another model"
        )
    return {**config, "language_model": {**settings, "digest": found}}


def build(config: Config, init_key: jax.Array, valid_key: jax.Array) -> Run:
    """Builds the run of a checked config, see `fsa.recipes.kinds.Kind`.

    Prints the accuracy of a linear probe of the embeddings.
    """
    del valid_key
    mesh = make_mesh(**config["mesh"])
    language = load_language_model(config, mesh)
    base = language.variables
    described = architecture.read_config(config["language_model"]["path"])
    check_modulations(config["policy"]["modulations"], base, described)
    task = load_task(config, language, mesh)
    for group, accuracy in probe(task).items():
        share = f"{100 * accuracy:.0f}% of choices"
        bars.print_line(f"Linear probe on embeddings, {group}: {share}")
    if len(task.groups) == 1:
        bars.print_line("  of everybody together: people who disagree cancel out here.")
        bars.print_line(
            "  With a column `group` in the table, each group has its own probe."
        )
    policy = make_policy(config, language.model, len(task.groups))
    variables, constants = assemble(policy, base, task.statistics(), init_key)
    predict = PolicyPredictor(
        policy,
        task,
        VALID,
        num_context=config["eval"]["num_context"],
        episodes_per_user=config["eval"]["valid_episodes_per_user"],
        beta=config["dpo"]["beta"],
        diagnose=False,
        users_at_once=config["eval"]["users_at_once"],
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
        loss_fn=build_loss(config, policy),
        constants=constants,
        make_examples=task.train_batch,
        validate=validate,
        sharding_rules=SHARDING_RULES,
        description=saved_model.describe_policy(
            config,
            **_policy_arguments(config, len(task.groups)),
            tokenization=tokenization_options(config),
            groups=task.groups,
        ),
        finish=tell_how_to_evaluate,
        data=task.data,
    )


def abstract(config: Config) -> AbstractRun:
    """Returns the shapes of a run; reads no weights and no choices.

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
    policy = make_policy(config, model, 2)
    width = jax.ShapeDtypeStruct((model.width,), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables, constants = jax.eval_shape(
        functools.partial(assemble, policy), base, (width, width), key
    )
    task = config["task"]
    examples = batch_shapes(
        batch_size=config["train"]["batch_size"],
        max_context=task["max_context"],
        num_targets=task["num_targets"],
        num_pairs=task["num_pairs"],
        num_features=model.width,
        length=max(task["buckets"]),
    )
    return AbstractRun(
        variables=variables,
        loss_fn=build_loss(config, policy),
        constants=constants,
        examples=examples,
        sharding_rules=SHARDING_RULES,
        trains_all=policy.train_base,
    )


def load_language_model(config: Config, mesh: Mesh) -> LanguageModel:
    """Loads the language model of a checked config, with the biases that z shifts.

    Each device loads only its own parts, since the model may not fit on one device.

    Raises:
      InputError: if the folder cannot be loaded, or if its attention cannot be computed
        as the config says on the devices of the mesh.
    """
    settings = config["language_model"]
    _check_attention(settings, mesh)
    split = functools.partial(sharding_of, mesh=mesh, rules=SHARDING_RULES)
    loaded = LanguageModel.load(
        settings["path"],
        dtype=settings["dtype"],
        sharding=split,
        **tokenization_options(config),
    ).with_biases(shifted(config["policy"]["modulations"]))
    model = loaded.model.clone(
        remat=settings["remat"] or None, attention=settings["attention"]
    )
    base = loaded.variables
    base = place(base, shardings(base, mesh, SHARDING_RULES))
    return dataclasses.replace(loaded, model=model, variables=base)


def _check_attention(settings: Mapping[str, Any], mesh: Mesh) -> None:
    """Refuses an attention kernel that cannot run, before any weights are read."""
    attention = settings["attention"]
    attention_kernels.check_device(attention, mesh.devices.flat[0].platform)
    if attention == attention_kernels.XLA:
        return
    abstract_language_model(
        architecture.read_config(settings["path"]),
        dtype=settings["dtype"],
        remat=settings["remat"],
        attention=attention,
        biases=(),
    )


def abstract_language_model(
    described: Mapping[str, Any],
    *,
    dtype: str,
    remat: str,
    attention: str,
    biases: Sequence[str],
) -> tuple[Transformer, Any]:
    """Returns a language model and the shapes of its variables.

    Args:
      described: the content of its config.json.
      dtype: dtype of parameters and computation.
      remat: see `Transformer`; "" for None.
      attention: see `Transformer`.
      biases: linear maps that get a bias if the architecture gives them none.

    Raises:
      InputError: if the attention cannot compute the model.
    """
    model = Transformer(
        **architecture.arguments(described, "config.language_model.shape"),
        remat=remat or None,
        attention=attention,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(dtype),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        base = jax.eval_shape(model.init, key, jnp.zeros((1, 1), jnp.int32))
    except ValueError as error:
        reason = str(error).removeprefix("attention: ")
        raise InputError(f"`attention`={attention}: {reason}; use xla") from error
    base = jax.eval_shape(lambda base: with_biases(model, base, biases)[1], base)
    return with_biases(model, base, biases)[0], base


def make_policy(config: Config, model: Transformer, num_groups: int) -> Policy:
    """Makes the policy of a checked config and its language model.

    Args:
      config: a checked config.
      model: the language model, with the biases that z shifts.
      num_groups: number of groups of users in the data.
    """
    return saved_model.make_policy(_policy_arguments(config, num_groups), model)


def _policy_arguments(config: Config, num_groups: int) -> dict[str, Any]:
    """Returns what a description says about a policy apart from its language model."""
    return {
        "model": model_arguments(config, 0),
        "policy": {**config["policy"], "num_groups": num_groups},
    }


def assemble(
    policy: Policy, base: Any, statistics: tuple, key: jax.Array
) -> tuple[Any, dict[str, Any]]:
    """Makes the variables and the constants of a run.

    Args:
      policy: the policy to train.
      base: the language model's variables.
      statistics: mean and standard deviation of the embeddings, `[F]` each.
      key: a JAX random key.

    Returns:
      (initial variables, constants). The language model is among the variables if it is
      trained, else among the constants.
    """
    variables = policy_loss.init_variables(policy, base, statistics, key)
    return variables, {"base": None if policy.train_base else base}


def build_loss(config: Config, policy: Policy) -> LossFn:
    """Makes the loss of a checked config."""
    objective = config["objective"]
    return policy_loss.make_loss(
        policy,
        **config["dpo"],
        objective=objective["name"],
        kl_weight=objective["beta"],
        num_samples=objective["num_samples"],
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


def tokenization_options(config: Config) -> dict[str, Any]:
    """Returns the arguments of `Tokenization` except the tokenizer, by the config."""
    names = (
        "date",
        "system",
        "separator",
        "end",
        "template_arguments",
        "max_prompt",
        "max_response",
    )
    return {name: config["task"][name] for name in names}


def load_task(
    config: Config, language: LanguageModel, mesh: Mesh | None = None
) -> PairTask:
    """Reads the choices of a checked config and their scores by its language model.

    Scores that are not saved beside the dataset yet are computed and saved there.

    Args:
      config: a checked config.
      language: the language model.
      mesh: the mesh over which its variables are split, if any.

    Raises:
      InputError: if the data are missing, damaged or too few, or the tokenizer cannot
        be used.
    """
    settings, evaluation = config["task"], config["eval"]
    data = dataset.load(settings["path"], need_features=False)
    buckets = tuple(settings["buckets"])
    test_context = max(evaluation["num_context"])
    # The data are checked before they are scored, which may take hours.
    for split, users in data.users.items():
        check_choices(split, users.chosen.lengths.tolist(), test_context)

    def score(table):
        check_buckets(table, buckets)
        return scoring.score_responses(
            language.model,
            language.variables,
            table,
            buckets=buckets,
            pooling=settings["pooling"],
            mesh=mesh,
            progress=is_first(),
        )

    scored = scored_responses.obtain(
        settings["path"],
        data,
        language.tokenization,
        score,
        model_digest=config["language_model"]["digest"],
        options={
            "pooling": settings["pooling"],
            "dtype": config["language_model"]["dtype"],
            "attention": language.model.attention,
        },
    )
    for reason, count in scored.left_out.items():
        bars.print_line(f"Left out {count:,} responses: {reason}")
    task = PairTask(
        data,
        scored,
        batch_size=config["train"]["batch_size"],
        max_context=settings["max_context"],
        num_targets=settings["num_targets"],
        num_pairs=settings["num_pairs"],
        test_context=test_context,
        test_targets=evaluation["num_targets"],
        buckets=buckets,
        seed=config["seed"],
    )
    if task.num_equal:
        bars.print_line(f"Left out {task.num_equal:,} choices: {EQUAL}")
    language.warn_of_length(int(scored.tokens.length.max()))
    return task
