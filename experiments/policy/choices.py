"""A policy on your own choices and your own language model; docs/policies.md.

In two stages, with `--config.task.path=DATASET --config.language_model.path=FOLDER` for
both: `--config=experiments/policy/choices.py:reward` learns to infer z, and
`--config=experiments/policy/choices.py --config.policy.reward_model=RUN` steers to it.
Other policies of fsa/recipes/presets.py are trained in one stage (`:np-dpo`). For
models of a billion parameters and more set `--config.language_model.dtype=bfloat16`,
for the policy `--config.language_model.remat=nothing_saveable` as well, and
`task.buckets` that fit your texts.
"""

from fsa.recipes.presets import POLICIES, REWARD, STAGES, check_name, policy, stage


def get_config(arg: str = "distillation"):
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
