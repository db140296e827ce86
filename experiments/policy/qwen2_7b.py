"""A policy on Qwen2.5-7B-Instruct, in 64 parts on as many chips or more.

    fsa compile --config=experiments/policy/qwen2_7b.py \\
      --topology=v5e:16x16

prints the cost of a step there. The argument is POLICY or POLICY-full with a policy of
fsa/recipes/presets.py, by default np-dpo. experiments/policy/pods.py has the settings
of all sizes, docs/dry_runs.md their costs.
"""

from experiments.policy.pods import qwen2, steered

_SHAPE = qwen2(
    width=3584, mlp_width=18944, layers=28, heads=28, kv_heads=4, vocab=152_064
)


def get_config(arg: str = "np-dpo"):
    """Returns the config of a policy; "-full" trains the language model too."""
    return steered(arg, "models/qwen2.5-7b-instruct", _SHAPE, fsdp=64)
