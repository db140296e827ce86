"""Steering a real pretrained model: stories260K from a folder."""

from experiments.base import policy


def get_config(arg: str = "np-dpo"):
    """The config of a policy, or of "paper": the settings of the NP-DPO paper's code."""
    config = policy("np-dpo" if arg == "paper" else arg)
    config.task.path = "runs/stories/sentences"
    # Stories go on behind the last token that was sampled.
    config.task.end = False
    config.task.max_prompt = 16
    config.task.max_response = 40
    config.task.buckets = (56,)
    config.language_model.path = "models/stories260K"
    config.dpo.beta = 0.5
    config.dpo.nll_weight = 1.0
    if config.policy.latent == "inferred":
        config.dpo.reward_steps = 100
    config.train.steps = 300
    config.train.validate_every = 100
    config.eval.attribute = "sentences"
    if arg == "paper":
        config.policy.modulations = (
            ("attention/out", "scale + shift + lora(8)"),
            ("mlp/down", "scale + shift + lora(8)"),
        )
        config.model.latent_dim = 256
        config.model.pooling = "attention"
        config.task.num_targets = 9
        config.dpo.beta = 0.05
        config.dpo.nll_weight = 0.0
        config.dpo.reward_steps = 0
        config.optimizer.learning_rate = 1e-4
        config.train.batch_size = 2
        config.train.steps = 600
    return config
