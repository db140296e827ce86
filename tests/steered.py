"""What tests of policies steer: a tiny language model, choices, and trained runs.

Everything is of the small language of `fsa.data.corpus`. The language model is random
and speaks in single words, so that its texts show attributes but no grammar.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fsa.data import corpus, responses, sampled, store
from fsa.data.collect import collect
from fsa.data.pairs import PairTask
from fsa.evaluation.language import LanguageModel
from fsa.evaluation.steerer import Steerer
from fsa.models import hf, hf_config
from fsa.models.policy import Policy
from fsa.models.reward import RewardModel
from fsa.models.transformer import Transformer
from fsa.training.precompute import score_responses

SIZES = dict(
    width=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=20
)
GROUPS = ("casual", "formal")
USERS = {"train": 5, "valid": 2, "test": 3}
NUM_CHOICES = dict.fromkeys(USERS, 6)
# A prompt has five tokens, an answer of the store at most ten and its end.
MAX_PROMPT, MAX_RESPONSE, BUCKETS = 8, 12, (12, 20)
TOKENS = dict(separator=" ", max_prompt=MAX_PROMPT, max_response=MAX_RESPONSE)
CONTEXT = (0, 2)
MODULATIONS = (("attention/out", "low_rank(2)"), ("mlp/down", "low_rank(2)"))

# The fields of a run of a few steps, as launch/train.py takes them.
FIELDS = {
    "task.max_context": 3,
    "task.num_targets": 2,
    "task.max_response": MAX_RESPONSE,
    "task.buckets": BUCKETS,
    "model.hidden": 8,
    "model.latent_dim": 2,
    "optimizer.learning_rate": 0.1,
    "optimizer.warmup_steps": 1,
    "train.steps": 4,
    "train.batch_size": 4,
    "train.validate_every": 2,
    "eval.num_context": CONTEXT,
    "eval.num_targets": 2,
    "eval.num_resamples": 20,
    "eval.users_at_once": 4,
    "eval.writers_per_group": 2,
    "eval.prompts_per_writer": 3,
}


def noisy(tree, seed, size=0.5):
    """Arrays of these shapes, normal around 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, size, x.shape), x.dtype), tree
    )


def write_language(folder, seed=0, tokenizer=None):
    """Writes a language model; without a `tokenizer` folder that of the corpus."""
    described = hf_config.llama(
        **SIZES,
        vocab_size=len(corpus.WORDS),
        bos_token_id=corpus.BOS,
        eos_token_id=corpus.EOS,
        pad_token_id=corpus.PAD,
    )
    model = Transformer(**hf_config.arguments(described))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    source = tokenizer or folder.with_name(f"{folder.name}-tokenizer")
    if tokenizer is None:
        corpus.write_tokenizer(source)
    hf.save(folder, described, noisy(shapes, seed), source=source)
    return folder


def choices(seed=0, users=USERS):
    """Choices of formal and of casual users between short answers of the grammar."""
    texts = [a for _, a in corpus.texts(seed, 4000) if len(a.split()) <= 10]
    prompts = [
        (prompt, split)
        for split, of_split in corpus.split_prompts(seed).items()
        for prompt in of_split
    ]
    samples = sampled.Samples(
        prompts=[prompt for prompt, _ in prompts],
        answers=[texts[4 * i : 4 * i + 4] for i in range(len(prompts))],
        splits=[split for _, split in prompts],
    )
    return sampled.choose(
        samples,
        sampled.users_of_groups({"formal": [1.0], "casual": [-1.0]}, users),
        [corpus.formality],
        num_choices=NUM_CHOICES,
        min_gap=0.5,
        seed=seed,
    )


def make_task(language, rows=None, **options):
    """The choices with their tokens under a language model."""
    data = collect(rows or choices(), [])
    tokens, left_out = responses.tokenize(data, language.tokenization)
    scores = score_responses(
        language.model, language.variables, tokens, buckets=BUCKETS, progress=False
    )
    defaults = dict(
        batch_size=4,
        max_context=3,
        num_targets=2,
        test_context=max(CONTEXT),
        test_targets=3,
        buckets=BUCKETS,
    )
    found = responses.Responses(tokens, *scores, left_out, "key")
    return PairTask(data, found, **(defaults | options))


def make_steerer(folder, **options):
    """A policy that was not trained but listens to z: its parameters are noise."""
    language = LanguageModel.load(str(folder), rows_at_once=4, **TOKENS)
    reward = RewardModel(hidden=8, latent_dim=2)
    policy = Policy(language.model, reward, MODULATIONS, **options)
    base = language.variables
    shapes = jax.eval_shape(
        lambda: policy.init(jax.random.key(0), base, language.model.width)
    )
    variables = noisy(shapes, 1)
    statistics = {"mean": jnp.zeros(16), "std": jnp.ones(16)}
    variables["statistics"] = {"options": statistics}
    if policy.train_base:
        variables["params"]["base"] = noisy(base, 2)
    return Steerer(policy, variables, language, "mean", BUCKETS)


def write_store(folder, rows=None):
    """Writes the choices as launch/prepare.py would."""
    store.write(folder, collect(rows or choices(), []))
    return folder


def flags(language, data, policy="np-dpo", **fields):
    """The flags of launch/train.py for a run of a few steps."""
    fields = {
        **FIELDS,
        **fields,
        "language_model.path": language,
        "task.path": data,
    }
    if policy == "np-dpo":
        fields.setdefault("dpo.reward_steps", 2)
    return [
        f"--config=experiments/policy/corpus.py:{policy}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def latents(size, seed=0):
    """z of some users, `[size, 2]`."""
    return np.random.default_rng(seed).normal(0, 1.5, (size, 2)).astype(np.float32)


def with_rows(language, rows_at_once):
    """The same model with parts of another size."""
    return dataclasses.replace(language, rows_at_once=rows_at_once)


def score(language, table):
    """log pi(response | prompt) under a plain model, `[B]`."""
    return score_responses(
        language.model, language.variables, table, buckets=(64,), progress=False
    )[0]
