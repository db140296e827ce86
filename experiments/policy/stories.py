"""Steering a real pretrained model: stories260K from a folder."""

from experiments.base import policy


def get_config(arg: str = "np-dpo"):
    """The config of one policy; `language_model.path` is to be set."""
    config = policy(arg)
    config.task.path = "runs/stories/sentences"
    config.task.end = False
    config.task.max_prompt = 16
    config.task.max_response = 40
    config.task.buckets = (56,)
    config.language_model.path = "models/stories260K"
    config.dpo.beta = 0.5
    config.dpo.nll_weight = 1.0
    if config.policy.latent == "inferred":
        config.dpo.reward_steps = 100
    config.train.steps = 400
    config.train.validate_every = 50
    config.eval.attribute = "sentences"
    return config
