"""The method itself, as Flax Linen models.

- `encoder`: `ContextEncoder` infers q(z | C), the posterior of a user's latent z.
- `reward`: `RewardModel` predicts choices given z, and its few-shot objectives.
- `policy`: `Policy` is a language model whose parameters z modulates.
- `modulated`: `Modulated` lets z modulate the parameters of any Flax module.
"""
