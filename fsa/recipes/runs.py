"""What a run of a reward model, policy or language model is made of."""

import dataclasses
import functools
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from fsa.conditioning.spec import resolve
from fsa.data import dataset, scored_responses
from fsa.data.sources import corpus
from fsa.data.tasks.pairs import PairTask, check_buckets, check_choices
from fsa.data.tasks.task import VALID
from fsa.errors import InputError
from fsa.evaluation.implicit_reward import PolicyPredictor, probe
from fsa.evaluation.scores import FewShotPredictor, Predictions, right, user_means
from fsa.language import huggingface, scoring, transformer
from fsa.language.huggingface import architecture
from fsa.language.language_model import LanguageModel
from fsa.language.transformer import Transformer, with_biases
from fsa.models import policy as modulated_policy
from fsa.models.policy import Policy, shifted, spec_of
from fsa.models.reward import RewardModel
from fsa.parallel.processes import is_first, on_first
from fsa.parallel.sharding import Rules, fetch, make_mesh, place, sharding_of, shardings
from fsa.recipes.config import build_task, model_arguments, policy_arguments
from fsa.training import language_model_loss as language
from fsa.training import policy_loss, reward_loss
from fsa.training.runner import MakeExamples, MeshRunner, PmapRunner, Runner
from fsa.training.step import LossFn, TrainState

# Nats that no policy's score comes near.
_NO_POLICY = 1e3


class Run(NamedTuple):
    """What `fsa.training.loop.train` needs besides optimizer and folders.

    Attributes:
      variables: initial Flax variables.
      loss_fn: of batches `(tables, rows)`.
      tables: arrays that all rows share.
      make_examples: rows of the global batch of a step.
      validate: metrics of a state on held-out users, with `score` to minimise.
      sharding: where parameters and tables lie on a mesh.
      meta: JSON saved with every checkpoint, from which the model is loaded.
      finish: what is left to do at the end, with the run's directory; by all processes.
    """

    variables: Any
    loss_fn: LossFn
    constants: Any
    make_examples: MakeExamples
    validate: Callable[[TrainState], dict[str, float]]
    sharding: Rules
    meta: dict[str, Any]
    finish: Callable[[TrainState, epath.Path], None]


def _to_evaluation(state: TrainState, run_dir: epath.Path):
    del state
    print(f"Next: python -m launch.evaluate --workdir={run_dir}")


def build(config: dict[str, Any], init_key, valid_key) -> Run:
    """The run that a checked config describes."""
    kinds = {"corpus": corpus_run, "pairs": policy_run}
    return kinds.get(config["task"]["name"], reward_run)(config, init_key, valid_key)


def make_runner(
    config: dict[str, Any], run: Run, optimizer, mesh: Mesh | None = None
) -> Runner:
    """What runs the steps of a run.

    Args:
      config: checked.
      run: what it describes.
      optimizer: of its parameters.
      mesh: of the config's own sizes, for runs in shapes alone; over all devices, as
        `build` has it, by default.

    Raises:
      InputError: for a mesh or a batch that does not fit them.
    """
    settings = config["train"]
    names = ("batch_size", "average_decay", "accumulate")
    given = {name: settings[name] for name in names}
    if settings["parallel"] == "pmap":
        return PmapRunner(run.loss_fn, optimizer, **given)
    mesh = mesh or make_mesh(**config["mesh"])
    return MeshRunner(run.loss_fn, optimizer, mesh=mesh, rules=run.sharding, **given)


def reward_run(config: dict[str, Any], init_key, valid_key) -> Run:
    """Of a reward model."""
    task = build_task(config)
    arguments = model_arguments(config, task.num_items)
    model = RewardModel(**arguments)
    deterministic = config["objective"]["name"] == "deterministic"
    predict = FewShotPredictor(
        model,
        task,
        VALID,
        num_context=config["eval"]["num_context"],
        episodes_per_user=config["eval"]["valid_episodes_per_user"],
        num_samples=config["eval"]["num_samples"],
        deterministic=deterministic,
        key=valid_key,
        diagnose=False,
    )
    objective = dict(config["objective"])
    return Run(
        variables=reward_loss.init_variables(model, task, init_key),
        loss_fn=reward_loss.make_loss(
            model, task, objective=objective.pop("name"), **objective
        ),
        constants=task.constants,
        make_examples=functools.partial(reward_loss.make_examples, task),
        validate=lambda state: _scores(predict(state.variables), predict.num_context),
        sharding=reward_loss.SHARDING_RULES,
        meta={"config": config, "model": arguments, "deterministic": deterministic},
        finish=_to_evaluation,
    )


def policy_run(config: dict[str, Any], init_key, valid_key) -> Run:
    """Of a policy; prints what a linear probe sees in the embeddings first.

    From the files on, the language model lies where training wants it: one device may
    be too small for it.
    """
    settings = config["language_model"]
    mesh, rules = make_mesh(**config["mesh"]), modulated_policy.SHARDING_RULES
    loaded = LanguageModel.load(
        settings["path"],
        dtype=settings["dtype"],
        sharding=functools.partial(sharding_of, mesh=mesh, rules=rules),
        **tokenization_options(config),
    )
    loaded = dataclasses.replace(
        loaded,
        model=loaded.model.clone(
            remat=settings["remat"] or None, attention=settings["attention"]
        ),
    )
    modulations = policy_arguments(config, 1)["modulations"]
    model, base = with_biases(loaded.model, loaded.variables, shifted(modulations))
    base = place(base, shardings(base, mesh, rules))
    check_modulations(config, base, architecture.read_config(settings["path"]))
    task = pair_task(config, loaded, mesh)
    for group, accuracy in probe(task).items():
        print(f"Linear probe on embeddings, {group}: {100 * accuracy:.0f}% of choices")
    arguments = {
        "model": model_arguments(config, 0),
        "policy": policy_arguments(config, len(task.groups)),
    }
    modulated = Policy(model, RewardModel(**arguments["model"]), **arguments["policy"])
    predict = PolicyPredictor(
        modulated,
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

    variables = policy_loss.init_variables(modulated, base, task.statistics(), init_key)
    # Where the base is trained, the state holds it.
    frozen = None if modulated.train_base else base

    def validate(state):
        scores = _scores(predict(state.variables, frozen), predict.num_context)
        if state.step <= config["dpo"]["reward_steps"]:
            # No policy is trained yet; one that gets worse later would lose to it.
            scores["score"] += _NO_POLICY
        return scores

    return Run(
        variables=variables,
        loss_fn=policy_loss(config, modulated),
        constants={"base": frozen},
        make_examples=task.train_batch,
        validate=validate,
        sharding=rules,
        meta={
            **arguments,
            "config": config,
            "language_model": settings,
            "tokenization": tokenization_options(config),
            "pooling": config["task"]["pooling"],
            "buckets": config["task"]["buckets"],
            "groups": task.groups,
        },
        finish=_to_evaluation,
    )


def policy_loss(config: dict[str, Any], modulated: Policy) -> LossFn:
    """What a policy of a checked config is trained on."""
    objective = config["objective"]
    return policy_loss.make_loss(
        modulated,
        **config["dpo"],
        objective=objective["name"],
        kl_weight=objective["beta"],
        num_samples=objective["num_samples"],
    )


def check_modulations(config: dict[str, Any], base: Any, described: dict[str, Any]):
    """Refuses what does not fit, and says what cannot be exported.

    Args:
      config: of a policy.
      base: the language model's parameters.
      described: its config.json.

    Raises:
      InputError: where modulations do not fit the parameters.
    """
    modulations = config["policy"]["modulations"]
    try:
        resolve(spec_of(modulations), base)
    except ValueError as error:
        raise InputError(f"config.policy.modulations: {error}") from error
    try:
        architecture.with_bias_fields(described, shifted(modulations), "config.json")
    except InputError as error:
        # Such a policy can still be evaluated and steered.
        print(f"Warning: launch.steer --export will be refused: {error}")


def corpus_run(config: dict[str, Any], init_key, valid_key) -> Run:
    """Of a language model of `fsa.data.sources.corpus`; ends in a Hugging Face folder."""
    del valid_key
    sizes, batch_size = config["transformer"], config["train"]["batch_size"]
    described = architecture.llama(
        **sizes,
        vocab_size=len(corpus.WORDS),
        bos_token_id=corpus.BOS,
        eos_token_id=corpus.EOS,
        pad_token_id=corpus.PAD,
    )
    model = Transformer(**architecture.arguments(described))
    loss_fn = language.make_loss(model, corpus.PAD)
    sequences = corpus.sequences(config["seed"], config["task"]["sequences"])
    held_out = corpus.sequences(config["seed"] + 1, config["eval"]["sequences"])

    def make_examples(step, positions):
        first = step * batch_size
        epoch, start = divmod(first, len(sequences))
        rng = np.random.default_rng((config["seed"], epoch))
        order = rng.permutation(len(sequences))
        return sequences[np.take(order, start + positions, mode="wrap")]

    # An argument, since XLA spends minutes on folding so large a constant.
    score = jax.jit(lambda variables, tokens: loss_fn(variables, ((), tokens), None))

    def validate(state):
        loss, metrics = score(state.variables, held_out)
        return {"score": float(loss), "nll": float(metrics["nll"])}

    def finish(state, run_dir):
        folder, variables = pathlib.Path(run_dir) / "model", fetch(state.variables)

        def write():
            shutil.rmtree(folder, ignore_errors=True)
            with tempfile.TemporaryDirectory() as source:
                corpus.write_tokenizer(source)
                huggingface.save(folder, described, variables, source=source)

        on_first(write)
        print(f"Written: {folder}, a Hugging Face folder")

    return Run(
        variables=language.init_variables(model, init_key),
        loss_fn=loss_fn,
        constants=(),
        make_examples=make_examples,
        validate=validate,
        sharding=transformer.SHARDING_RULES,
        meta={"config": config},
        finish=finish,
    )


def tokenization_options(config: dict[str, Any]) -> dict[str, Any]:
    """How the texts of a policy's run become tokens, see `Tokenization`."""
    names = ("date", "system", "separator", "end", "max_prompt", "max_response")
    return {name: config["task"][name] for name in names}


def pair_task(
    config: dict[str, Any], language: LanguageModel, mesh: Mesh | None = None
) -> PairTask:
    """The data of a policy's run, scored by its language model where they are not yet.

    Args:
      config: checked.
      language: the language model.
      mesh: where it lies, if on one.

    Raises:
      InputError: if they are missing, damaged or too few, or the language model lacks
        something.
    """
    settings, evaluation = config["task"], config["eval"]
    data = dataset.load(settings["path"], need_features=False)
    buckets = tuple(settings["buckets"])
    test_context = max(evaluation["num_context"])
    # What is wrong with the data shows before they are scored, which may take hours.
    for split, users in data.users.items():
        check_choices(split, (users.chosen >= 0).sum(axis=1).tolist(), test_context)

    def score(table: scored_responses.TokenTable):
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
        print(f"Left out {count:,} responses: {reason}")
    return PairTask(
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


def _scores(predictions: Predictions, sizes) -> dict[str, float]:
    """NLL and accuracy at each context size; the score is the NLL over all sizes."""
    nll = user_means(-predictions.log_prob, predictions.mask).mean(0)
    accuracy = user_means(right(predictions.log_prob), predictions.mask).mean(0)
    values = {"score": np.mean(nll)}
    for n, own_nll, own_accuracy in zip(sizes, nll, accuracy, strict=True):
        values |= {f"nll_at_{n}": own_nll, f"accuracy_at_{n}": own_accuracy}
    return values
