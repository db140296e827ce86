"""A policy on Llama-3-70B-Instruct, in 128 x 2 parts (64 chips: mesh.fsdp=32).

    fsa compile --config=experiments/policy/llama3_70b.py \\
      --topology=v5e:16x16

prints the cost of a step there. The argument is POLICY or POLICY-full with a policy of
fsa/recipes/presets.py, by default np-dpo. experiments/policy/pods.py has the settings
of all sizes, docs/dry_runs.md their costs.
"""

from experiments.policy.pods import llama3, steered

_SHAPE = llama3(width=8192, mlp_width=28672, layers=80, heads=64, kv_heads=8)


def get_config(arg: str = "np-dpo"):
    """Returns the config of a policy; "-full" trains the language model too."""
    return steered(arg, "models/llama-3-70b-instruct", _SHAPE, fsdp=128, tensor=2)
