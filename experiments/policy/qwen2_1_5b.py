"""A policy on Qwen2.5-1.5B-Instruct, in 16 parts: one torus axis of v5e:16x16.

    fsa compile --config=experiments/policy/qwen2_1_5b.py \\
      --topology=v5e:16x16

prints the cost of a step there. The argument is POLICY or POLICY-full with a policy of
fsa/recipes/presets.py, by default np-dpo. experiments/policy/pods.py has the settings
of all sizes, docs/dry_runs.md their costs.
"""

from experiments.policy.pods import qwen2, steered

_SHAPE = qwen2(width=1536, mlp_width=8960, layers=28, heads=12, kv_heads=2, tied=True)


def get_config(arg: str = "np-dpo"):
    """Returns the config of a policy; "-full" trains the language model too."""
    return steered(arg, "models/qwen2.5-1.5b-instruct", _SHAPE, fsdp=16)
