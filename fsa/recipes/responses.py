"""What runs share whose options are responses that a language model embeds.

These are policies, and the reward models that give policies z. Both read the same
scores of the same responses, so a policy meets the features that its reward model was
trained on.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fsa import bars
from fsa.data import dataset, scored_responses
from fsa.data.dataset import Dataset
from fsa.data.scored_responses import Responses
from fsa.data.tasks.pairs import check_buckets, check_choices
from fsa.errors import InputError
from fsa.language import attention_kernels, huggingface
from fsa.language.huggingface import architecture
from fsa.language.language_model import LanguageModel
from fsa.language.transformer import Transformer, with_biases
from fsa.models.policy import shifted
from fsa.parallel.processes import is_first
from fsa.recipes.config import Config

# Fields of `task` that decide how a prompt and a response become tokens.
_TOKENIZATION = (
    "date",
    "system",
    "separator",
    "end",
    "template_arguments",
    "max_prompt",
    "max_response",
)

# Fields that decide the features of a response, apart from the model's digest.
FEATURE_FIELDS = (
    *(f"task.{name}" for name in _TOKENIZATION),
    "task.pooling",
    "language_model.dtype",
    "language_model.attention",
)


class Embedded(NamedTuple):
    """A dataset of choices, and its responses as a language model scores them."""

    data: Dataset
    responses: Responses


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


def load_language_model(config: Config, mesh: Mesh) -> LanguageModel:
    """Loads the language model of a checked config, with the biases that z shifts.

    Each device loads only its own parts, since the model may not fit on one device.

    Raises:
      InputError: if the folder cannot be loaded, or if its attention cannot be computed
        as the config says on the devices of the mesh.
    """
    settings = config["language_model"]
    _check_attention(settings, mesh)
    loaded = LanguageModel.load(
        settings["path"],
        dtype=settings["dtype"],
        mesh=mesh,
        **tokenization_options(config),
    ).with_biases(shifted(config.get("policy", {}).get("modulations", ())))
    model = loaded.model.clone(
        remat=settings.get("remat") or None, attention=settings["attention"]
    )
    return dataclasses.replace(loaded, model=model)


def _check_attention(settings: Mapping[str, Any], mesh: Mesh) -> None:
    """Refuses an attention kernel that cannot run, before any weights are read."""
    attention = settings["attention"]
    attention_kernels.check_device(attention, mesh.devices.flat[0].platform)
    if attention == attention_kernels.XLA:
        return
    abstract_language_model(
        architecture.read_config(settings["path"]),
        dtype=settings["dtype"],
        remat=settings.get("remat", ""),
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


def tokenization_options(config: Config) -> dict[str, Any]:
    """Returns the arguments of `Tokenization` except the tokenizer, by the config."""
    return {name: config["task"][name] for name in _TOKENIZATION}


def load_embedded(config: Config, language: LanguageModel) -> Embedded:
    """Reads the choices of a checked config and their scores by its language model.

    Scores that are not saved beside the dataset yet are computed and saved there.

    Args:
      config: a checked config.
      language: the language model, whose mesh computes the scores, if it has one.

    Raises:
      InputError: if the data are missing, damaged or too few, or the tokenizer cannot
        be used.
    """
    settings = config["task"]
    data = dataset.load(settings["path"], need_features=False)
    buckets = tuple(settings["buckets"])
    # The data are checked before they are scored, which may take hours.
    for split, users in data.users.items():
        test_context = max(config["eval"]["num_context"])
        check_choices(split, users.chosen.lengths.tolist(), test_context)

    def score(table, kept):
        check_buckets(table, buckets)
        return language.score(
            table,
            pooling=settings["pooling"],
            buckets=buckets,
            progress=is_first(),
            kept=kept,
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
    language.warn_of_length(int(scored.tokens.length.max()))
    return Embedded(data, scored)
