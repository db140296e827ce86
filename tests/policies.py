"""Tiny language models, choices, policies and configs, for tests of several folders.

The language is the corpus. Language models are random, so that nothing takes long: they
speak in single words, and their texts show attributes but no grammar. Sizes differ from
each other, so that no swapped axis passes.
"""

import dataclasses
import functools
import math
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from experiments.policy import corpus as experiment
from fsa.conditioning import fold
from fsa.data import dataset, scored_responses
from fsa.data.collect import collect
from fsa.data.sources import corpus, sampled
from fsa.data.tasks.pairs import PairTask
from fsa.inference.steerer import Steerer
from fsa.language import huggingface
from fsa.language.huggingface import architecture
from fsa.language.language_model import LanguageModel
from fsa.language.scoring import score_responses
from fsa.language.transformer import Transformer
from fsa.models.policy import Policy, shifted
from fsa.models.reward import RewardModel
from fsa.recipes.config import resolve

SIZES = {
    "width": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "mlp_width": 20,
}
DESCRIBED = architecture.llama(
    **SIZES,
    vocab_size=len(corpus.WORDS),
    bos_token_id=corpus.BOS,
    eos_token_id=corpus.EOS,
    pad_token_id=corpus.PAD,
)
GROUPS = {"formal": [1.0], "casual": [-1.0]}
USERS = {"train": 5, "valid": 2, "test": 3}
PROMPTS, ANSWERS, CHOICES = 12, 4, 6
# A prompt has five tokens; an answer of the choices fits, its end included.
MAX_PROMPT, MAX_RESPONSE, BUCKETS = 8, 12, (12, 20)
TOKENS = dict(separator=" ", max_prompt=MAX_PROMPT, max_response=MAX_RESPONSE)
CONTEXT = (0, 2)
# Flags of `fsa prepare` for choices between samples of the language model.
SAMPLED_USERS = {
    "users": "train:4,valid:2,test:3",
    "num_choices": "train:5,valid:5,test:5",
}
REWARD = {"hidden": 8, "latent_dim": 3}
MODULATIONS = (("attention/out", "low_rank(2)"), ("mlp/down", "scale"))

# The template of a chat.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
    "{% if m.role == 'assistant' %}{{ '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

# Makes `experiments/policy/corpus.py` a matter of seconds, most of them compilation.
TINY = {
    "task.max_context": 3,
    "task.num_targets": 2,
    "task.max_response": MAX_RESPONSE,
    "task.buckets": BUCKETS[-1:],
    **{f"model.{name}": size for name, size in REWARD.items()},
    "objective.num_samples": 2,
    "policy.modulations": MODULATIONS,
    "optimizer.warmup_steps": 1,
    "train.steps": 8,
    "train.batch_size": 4,
    "train.steps_per_call": 2,
    "train.validate_every": 4,
    "eval.num_context": CONTEXT,
    "eval.num_targets": 3,
    "eval.num_resamples": 20,
    "eval.users_at_once": 4,
    "eval.partway": (0.5,),
    "eval.writers_per_group": 2,
    "eval.prompts_per_writer": 2,
}


def noisy(shapes, seed=0, std=0.3):
    """Normal numbers in place of everything, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(0, std, x.shape).astype(np.float32), shapes
    )


def language_model(seed=0, described=DESCRIBED, **options):
    """A `Transformer` of the corpus with random weights, and its variables."""
    model = Transformer(**architecture.arguments(described) | options)
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))
    rng = np.random.default_rng(seed)

    def fill(path, x):
        if path[-1].key == "scale":
            return rng.uniform(0.8, 1.2, x.shape).astype(np.float32)
        fan_in = 10 if path[-1].key == "embedding" else math.prod(x.shape[1:-1])
        return rng.normal(0, fan_in**-0.5, x.shape).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(fill, shapes)


def write_language_model(folder, seed=0, described=DESCRIBED):
    """Writes a Hugging Face folder of `language_model(seed, described)`."""
    with tempfile.TemporaryDirectory() as source:
        corpus.write_tokenizer(source)
        huggingface.save(
            folder, described, language_model(seed, described)[1], source=source
        )
    return folder


def write_model_of_bytes(folder):
    """Writes a random Llama with a token for each byte and the template of a chat.

    vLLM takes its sizes.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {x: i for i, x in enumerate(["<pad>", "<start>", "<end>", *letters])}
    own = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    source = folder.with_name("tokenizer")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=own,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        chat_template=TEMPLATE,
    ).save_pretrained(source)
    described = architecture.llama(
        **{**SIZES, "head_dim": 32},
        vocab_size=len(vocabulary),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    variables = language_model(described=described)[1]
    huggingface.save(folder, described, variables, source=source)
    return folder


def choices(users=USERS):
    """The choice table of users who want answers formal, or casual."""
    split_of = {
        prompt: split
        for split, prompts in corpus.split_prompts(0).items()
        for prompt in prompts[:PROMPTS]
    }
    texts = [a for _, a in corpus.texts(1, 1000) if len(a.split()) < MAX_RESPONSE]
    answers = np.reshape(texts[: len(split_of) * ANSWERS], (-1, ANSWERS))
    samples = sampled.Samples(
        prompts=tuple(split_of),
        answers=answers.tolist(),
        splits=tuple(split_of.values()),
    )
    return sampled.choose(
        samples,
        sampled.users_of_groups(GROUPS, users),
        [corpus.formality],
        num_choices=dict.fromkeys(users, CHOICES),
        min_gap=0.5,
        seed=0,
    )


def write_choices(folder, table=None):
    """Writes the dataset of a choice table, of `choices()` by default."""
    dataset.write(folder, collect(table or choices(), []))
    return folder


def make_task(language):
    """The choices, tokenized and scored by a `LanguageModel`."""
    data = collect(choices(), [])
    tokens, left_out = scored_responses.tokenize(data, language.tokenization)
    scores = score_responses(
        language.model, language.variables, tokens, buckets=BUCKETS, progress=False
    )
    return PairTask(
        data,
        scored_responses.Responses(tokens, *scores, left_out, "key"),
        batch_size=4,
        max_context=3,
        num_targets=2,
        test_context=max(CONTEXT),
        test_targets=3,
        buckets=BUCKETS,
    )


def make_steerer(
    folder, modulations=MODULATIONS, *, tokens=TOKENS, hyper_std=0.5, **options
):
    """An untrained policy whose texts depend on z: its parameters are noise."""
    language = LanguageModel.load(
        str(folder), dtype="float32", examples_at_once=4, **tokens
    )
    language = language.with_biases(shifted(modulations))
    policy = Policy(language.model, RewardModel(**REWARD), modulations, **options)
    base, width = language.variables, language.model.width
    shapes = jax.eval_shape(lambda: policy.init(jax.random.key(0), base, width))
    variables = noisy(shapes, 1, std=0.5)
    variables["params"]["hyper"] = noisy(shapes["params"]["hyper"], 1, std=hyper_std)
    variables["statistics"] = {
        "options": {"mean": np.zeros(width), "std": np.ones(width)}
    }
    if policy.train_base:
        variables["params"]["base"] = noisy(base, 2, std=0.5)
    return Steerer(policy, variables, language, "mean", BUCKETS)


@functools.partial(jax.jit, static_argnums=0)
def _folded(policy, variables, base, z):
    return fold(policy.condition(variables, base, z))


def folded(steerer, z):
    """The language model's variables at z, as plain arrays."""
    base = steerer.language.variables
    return _folded(steerer.policy, steerer.variables, base, jnp.asarray(z))


@functools.partial(jax.jit, static_argnums=0)
def logits(model, variables, tokens):
    """The logits of sequences `[B, T]`, all tokens at once."""
    return model.apply(variables, tokens)[0]


def log_probs(model, variables, tokens, start, stop):
    """log p of the responses in sequences `[B, T]` that are padded on the right."""
    # No token that counts can see the padding after it.
    found = np.float64(logits(model, variables, tokens))[:, :-1]
    found -= np.logaddexp.reduce(found, axis=-1, keepdims=True)
    steps = np.take_along_axis(found, tokens[:, 1:, None], axis=-1)[..., 0]
    ends = zip(steps, start, stop, strict=True)
    return np.array([own[first - 1 : last - 1].sum() for own, first, last in ends])


def with_examples_at_once(language, examples_at_once):
    """The same `LanguageModel`, which computes batches of another size."""
    return dataclasses.replace(language, examples_at_once=examples_at_once)


def tiny_policy_config(folder, variant="np-dpo", **fields):
    """The checked config of a tiny run; fields by dotted name.

    Args:
      folder: with `choices` and `language`, see `write_all`.
      variant: of experiments/policy/corpus.py.
      **fields: in place of `TINY`.
    """
    config = experiment.get_config(variant)
    config.update_from_flattened_dict({**tiny_fields(folder, variant), **fields})
    return resolve(config)


def tiny_fields(folder, variant="np-dpo"):
    """Dotted name -> value of what a tiny run sets."""
    return {
        **TINY,
        "task.path": str(folder / "choices"),
        "language_model.path": str(folder / "language"),
        "dpo.reward_steps": 2 if variant == "np-dpo" else 0,
    }


def write_all(folder):
    """Writes what tiny runs need: `choices` and `language`."""
    write_choices(folder / "choices")
    write_language_model(folder / "language")
    return folder


def flags(folder, variant="np-dpo", **fields):
    """The command line of a tiny run, but for its --workdir."""
    given = {**tiny_fields(folder, variant), **fields}
    return [
        f"--config=experiments/policy/corpus.py:{variant}",
        *(f"--config.{name}={value}" for name, value in given.items()),
    ]
