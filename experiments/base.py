"""What all reward-model experiments share: the fields and the model variants.

Every field that a config may have stands here, so that a misspelt one fails.
"""

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
    config = ConfigDict()
    config.seed = 0

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
    config.train.parallel = "mesh"

    config.eval = ConfigDict()
    config.eval.num_context = (0, 1, 3, 5, 10)
    config.eval.num_targets = 10
    config.eval.episodes_per_user = 1
    config.eval.num_samples = 64
    config.eval.num_resamples = 1000
    config.eval.valid_episodes_per_user = 1
    return config
