"""A policy on your own choices and your own language model; docs/policies.md.

`--config=experiments/policy/choices.py:POLICY --config.task.path=DATASET
--config.language_model.path=FOLDER` with POLICY one of those in fsa/recipes/presets.py
(default np-dpo). For models of a billion parameters and more set
`--config.language_model.dtype=bfloat16
--config.language_model.remat=nothing_saveable`, and `task.buckets` that fit your texts.

In two stages, with the same data and language model, `:reward` learns to infer z, and
`:given-np-dpo` or `:distillation` with `--config.policy.reward_model=RUN` steers to it.
"""

from fsa.recipes.presets import POLICIES, REWARD, STAGES, check_name, policy, stage


def get_config(arg: str = "np-dpo"):
    """Returns the config of a stage or a policy, in which paths must be set."""
    check_name("variant", arg, (*STAGES, *POLICIES))
    config = stage(arg) if arg in STAGES else policy(arg)
    if arg == REWARD:
        return config
    if arg in STAGES:
        config.policy.reward_model = "runs/mine-reward"
    elif config.policy.latent == "inferred":
        config.dpo.reward_steps = 200
    config.train.steps = 1000
    config.train.validate_every = 200
    return config
