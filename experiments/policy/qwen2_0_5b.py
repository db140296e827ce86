"""Qwen2.5-0.5B-Instruct, steered; in parts on 16 chips, a torus axis of v5e:16x16.

    python -m launch.compile --config=experiments/policy/qwen2_0_5b.py \\
      --topology=v5e:16x16

says what a step costs there. The argument is POLICY or POLICY-full with a policy of
fsa/recipes/presets.py, by default np-dpo; experiments/policy/pods.py has what the sizes
share, docs/dry_runs.md what they cost where.
"""

from experiments.policy.pods import qwen2, steered

_SHAPE = qwen2(width=896, mlp_width=4864, layers=24, heads=14, kv_heads=2, tied=True)


def get_config(arg: str = "np-dpo"):
    """The config of a policy, the language model frozen or trained ("-full")."""
    return steered(arg, "models/qwen2.5-0.5b-instruct", _SHAPE, fsdp=16)
