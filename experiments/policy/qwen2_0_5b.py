"""Qwen2.5-0.5B-Instruct, steered; for one host of TPUs or GPUs and up.

The argument is POLICY or POLICY-full with a policy of experiments/base.py, see
experiments/policy/pods.py, which has what the sizes share; docs/dry_runs.md has what it
costs where.
"""

from experiments.policy.pods import qwen2, steered


def get_config(arg: str = "np-dpo"):
    """The config of one policy, with its own parameters frozen or trained ("-full")."""
    return steered(
        arg,
        "models/qwen2.5-0.5b-instruct",
        qwen2(width=896, mlp_width=4864, layers=24, heads=14, kv_heads=2, tied=True),
    )
