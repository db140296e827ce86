"""A language model of a small controllable corpus, steered by two opposite groups."""

from experiments.base import policy


def get_config(arg: str = "np-dpo"):
    """The config of one policy."""
    config = policy(arg)
    config.task.path = "runs/corpus/choices"
    config.task.separator = " "
    config.task.max_prompt = 8
    config.task.max_response = 40
    config.task.buckets = (48,)
    config.task.num_targets = 4
    config.language_model.path = "runs/corpus/model"
    config.dpo.reward_steps = 100
    config.train.steps = 300
    config.eval.episodes_per_user = 1
    return config
