"""A policy on your own choices and your own language model; docs/policies.md.

`--config=experiments/policy/choices.py:POLICY --config.task.path=DATASET
--config.language_model.path=FOLDER` with POLICY one of those in fsa/recipes/presets.py
(default np-dpo). For models of a billion parameters and more set
`--config.language_model.dtype=bfloat16
--config.language_model.remat=nothing_saveable`, and `task.buckets` that fit your texts.
"""

from fsa.recipes.presets import policy


def get_config(arg: str = "np-dpo"):
    """Returns the config of a policy, in which two paths must be set."""
    config = policy(arg)
    if config.policy.latent == "inferred":
        config.dpo.reward_steps = 200
    config.train.steps = 1000
    config.train.validate_every = 200
    return config
