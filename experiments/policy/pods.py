"""Settings that all policies of large language models share, for pods.

With your own choices (`fsa prepare`) and a folder of weights, run

    fsa train --config=experiments/policy/qwen2_7b.py:np-dpo \\
      --config.task.path=DATASET --config.language_model.path=FOLDER --workdir=DIR

on every host of a pod. "np-dpo", "dpo" and "dpo-by-group" train low ranks at the
outputs of attention and MLP and leave the language model as it is; with "-full" behind
them its own parameters are trained as well. `fsa compile` reports in advance whether
it fits and what a step costs; it needs the shapes of the language models, which are
given here as fields of their config.json.
"""

from fsa.recipes.presets import policy

_SUFFIX = "-full"


def steered(arg: str, path: str, shape: dict, fsdp: int, tensor: int = 1):
    """Returns the config of a policy on a pod.

    Args:
      arg: POLICY or POLICY-full.
      path: the language model's folder.
      shape: the fields of its config.json that change shapes.
      fsdp: number of devices that store it in parts.
      tensor: number of devices that compute a user together. They compute as many users
        one after another, which takes the memory of one.

    Raises:
      InputError: if the policy is unknown.
    """
    config = policy(arg.removesuffix(_SUFFIX))
    config.language_model.path = path
    config.language_model.shape = tuple(shape.items())
    config.language_model.dtype = "bfloat16"
    config.language_model.remat = "nothing_saveable"
    # On GPUs "cudnn".
    config.language_model.attention = "splash"
    config.policy.train_base = arg.endswith(_SUFFIX)
    config.task.max_prompt = 512
    config.task.max_response = 512
    config.task.buckets = (1024,)
    config.task.num_targets = 2

    config.dpo.beta = 0.1
    if config.policy.latent == "inferred":
        config.dpo.reward_steps = 200
        config.dpo.reward_weight = 1.0
    config.optimizer.learning_rate = 1e-5 if config.policy.train_base else 1e-3
    # On 256 chips one user each: 2 pairs, or 4 sequences of 1,024 tokens.
    config.train.batch_size = 256
    config.train.steps = 1000
    config.train.validate_every = 200
    config.mesh.fsdp, config.mesh.tensor = fsdp, tensor
    config.train.accumulate = tensor
    return config


def qwen2(*, width, mlp_width, layers, heads, kv_heads, vocab=151_936, tied=False):
    """Returns the fields of a Qwen2.5's config.json."""
    return {
        "architectures": ("Qwen2ForCausalLM",),
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_window_layers": layers,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": tied,
    }


def llama3(*, width, mlp_width, layers, heads, kv_heads):
    """Returns the fields of a Llama 3's config.json."""
    return {
        "architectures": ("LlamaForCausalLM",),
        "vocab_size": 128_256,
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
    }
