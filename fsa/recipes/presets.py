"""What all experiments share: the fields and the model variants.

Every field that a config may have stands here, so that a misspelt one fails.
"""

import itertools
from typing import Any

from ml_collections import ConfigDict

# name: (likelihood, latent_dim, objective, standard_prior, how rewards take z)
MODELS = {
    "np-btl": ("btl", 4, "ml", False, "concatenated"),
    "np-btl-modulated": ("btl", 4, "ml", False, "modulated"),
    "np-btl-deterministic": ("btl", 4, "deterministic", False, "concatenated"),
    "np-btl-elbo": ("btl", 4, "elbo", False, "concatenated"),
    "vpl": ("btl", 4, "vpl", True, "concatenated"),
    "btl": ("btl", 0, "deterministic", False, "concatenated"),
    "dpl": ("dpl", 0, "deterministic", False, "concatenated"),
}


def training() -> ConfigDict:
    """The fields of any run."""
    config = ConfigDict()
    config.seed = 0

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0

    config.train = ConfigDict()
    config.train.steps = 1000
    config.train.batch_size = 64
    config.train.steps_per_call = 50
    config.train.validate_every = 250
    config.train.average_decay = 0.0
    # Checkpoints kept besides the best one.
    config.train.keep_last = 2
    # Updates of a run that may be skipped where loss or gradient is not finite.
    config.train.skip_bad_steps = 0
    # Micro-batches that a batch is computed in, for memory's sake.
    config.train.accumulate = 1
    config.train.parallel = "mesh"

    # Devices that store a parameter in parts, and that compute a row in parts; the
    # others each take rows of their own. A run may resume on another mesh.
    config.mesh = ConfigDict()
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    return config


def reward_model(name: str) -> ConfigDict:
    """The fields of any reward-model run; tasks and sizes are the experiment's to set.

    Args:
      name: one of `MODELS`.

    Raises:
      ValueError: for another name.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is none of {', '.join(MODELS)}")
    likelihood, latent_dim, objective, standard_prior, reward = MODELS[name]
    config = training()
    config.task = ConfigDict()
    config.task.max_context = 10
    config.task.num_targets = 10

    config.model = ConfigDict()
    config.model.hidden = 32
    config.model.latent_dim = latent_dim
    config.model.likelihood = likelihood
    # "concatenated": z beside an option's embedding; "modulated": z scales and shifts
    # every layer of the reward, by fsa.conditioning.
    config.model.reward = reward
    config.model.pooling = "mean"
    config.model.standard_prior = standard_prior
    config.model.item_embeddings = False
    config.model.item_dropout = 0.0

    config.objective = ConfigDict()
    config.objective.name = objective
    config.objective.num_samples = 8
    config.objective.beta = 1.0

    config.eval = ConfigDict()
    config.eval.num_context = (0, 1, 3, 5, 10)
    config.eval.num_targets = 10
    config.eval.episodes_per_user = 1
    config.eval.num_samples = 64
    config.eval.num_resamples = 1000
    config.eval.valid_episodes_per_user = 1
    return config


# name: where z comes from, see fsa/models/policy.py
POLICIES = {"np-dpo": "inferred", "dpo": "none", "dpo-by-group": "group"}


def policy(name: str) -> ConfigDict:
    """The fields of any policy run; data and language model are the experiment's.

    Args:
      name: one of `POLICIES`.

    Raises:
      ValueError: for another name.
    """
    if name not in POLICIES:
        raise ValueError(f"policy {name!r} is none of {', '.join(POLICIES)}")
    # The encoder is that of a reward model, which can be trained first.
    config = reward_model("np-btl-deterministic")
    config.task.name = "pairs"
    config.task.path = "data/mine"
    config.task.num_targets = 4
    # Of the targets, those that the policy reads, which costs far more than the reward
    # model; None for all.
    config.task.num_pairs = None
    # Tokens: a longer prompt is left out, a longer response cut.
    config.task.max_prompt = 256
    config.task.max_response = 256
    config.task.buckets = (64, 128, 256, 512)
    config.task.system = ""
    config.task.separator = ""
    config.task.end = True
    config.task.date = "26 Jul 2024"
    config.task.pooling = "mean"

    config.language_model = ConfigDict()
    config.language_model.path = "models/mine"
    # SHA-256 of the folder; "" for whatever is there when the run begins.
    config.language_model.digest = ""
    # (field of its config.json, value): lets launch.compile do without the folder.
    config.language_model.shape = ()
    config.language_model.dtype = "float32"
    # A policy of jax.checkpoint_policies, "" to keep all activations.
    config.language_model.remat = ""
    # "xla"; "cudnn" on GPUs and "splash" on TPUs save memory, see fsa/language/attention_kernels.py.
    config.language_model.attention = "xla"

    config.policy = ConfigDict()
    config.policy.latent = POLICIES[name]
    config.policy.modulations = (
        ("attention/out", "low_rank(8)"),
        ("mlp/down", "low_rank(8)"),
    )
    config.policy.trunk = ()
    config.policy.normalize = False
    config.policy.train_base = False

    config.model.hidden = 64
    config.model.latent_dim = 16
    config.objective.num_samples = 4

    config.dpo = ConfigDict()
    config.dpo.loss = "dpo"
    config.dpo.beta = 1.0
    config.dpo.label_smoothing = 0.0
    config.dpo.nll_weight = 2.0
    config.dpo.reward_weight = 0.0
    config.dpo.reward_steps = 0

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    config.train.batch_size = 8
    config.train.steps = 200
    config.train.steps_per_call = 1
    config.train.validate_every = 50

    config.eval.num_targets = 20
    config.eval.users_at_once = 8
    # What the groups disagree about in the texts that are written, see
    # fsa/data/sources/attributes.py; "" to write none.
    config.eval.attribute = ""
    config.eval.validity = "words"
    # Of simulated users on a sphere of weights, for the ceiling; () for others.
    config.eval.weighed_attributes = ()
    config.eval.slope = 1.0
    config.eval.writers_per_group = 20
    config.eval.prompts_per_writer = 10
    return config


def language_model() -> ConfigDict:
    """The fields of a language model that is pretrained on the small corpus."""
    config = training()
    config.task = ConfigDict()
    config.task.name = "corpus"
    config.task.sequences = 30_000

    config.transformer = ConfigDict()
    config.transformer.width = 64
    config.transformer.num_layers = 4
    config.transformer.num_heads = 4
    config.transformer.num_kv_heads = 4
    config.transformer.head_dim = 16
    config.transformer.mlp_width = 176

    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.01
    config.train.steps = 2500
    config.train.validate_every = 500

    config.eval = ConfigDict()
    config.eval.sequences = 1000
    return config


def grid(**values: tuple) -> list[dict[str, Any]]:
    """Every combination of values of fields, for an experiment's `get_sweep`.

    The first field varies slowest: `grid(**{"model.hidden": (32, 64), "seed": (0, 1)})`
    is `[{"model.hidden": 32, "seed": 0}, {"model.hidden": 32, "seed": 1}, ...]`. Grids
    are lists, so a sweep of several is their sum.
    """
    combinations = itertools.product(*values.values())
    return [dict(zip(values, chosen, strict=True)) for chosen in combinations]
