"""Attention kernels that never hold all products of queries and keys: cuDNN and splash.

They are causal and take no mask, so padding must be on the right of an example, where
no real token attends to it. Splash takes several texts in one example.

Shapes: B examples, T tokens, N query heads, K key and value heads, H features of a
head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fsa.errors import InputError
from fsa.parallel.sharding import by_heads

XLA, CUDNN, SPLASH = ATTENTIONS = ("xla", "cudnn", "splash")

# Splash takes multiples of this many features, and blocks of this many tokens.
_LANES, _BLOCK = 128, 512


def check(
    attention: str, *, dtype: Any, head_dim: int, soft_cap: float | None, windows: int
) -> None:
    """Raises ValueError if an implementation of attention cannot compute a model.

    Args:
      attention: one of `ATTENTIONS`.
      dtype: dtype of the computation.
      head_dim: H.
      soft_cap: soft cap of the products, or None.
      windows: number of different windows of the model's layers.

    Raises:
      ValueError: if the model does not fit; names the property.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"attention is one of {ATTENTIONS}, not {attention!r}")
    if attention == XLA:
        return
    if windows > 1:
        raise ValueError(f"attention: {attention} needs one window for all layers")
    if attention == CUDNN:
        if jnp.dtype(dtype).itemsize != 2:
            raise ValueError(f"attention: cudnn computes in bfloat16, not {dtype}")
        if head_dim % 8 or head_dim > 128:
            raise ValueError(f"attention: cudnn has no heads of {head_dim} features")
        if soft_cap is not None:
            raise ValueError("attention: cudnn has no soft cap; splash has")


def check_device(attention: str, platform: str) -> None:
    """Raises InputError if an implementation does not run on a platform's devices.

    Args:
      attention: one of `ATTENTIONS`.
      platform: of the devices, such as "cpu".
    """
    needed = {CUDNN: "gpu", SPLASH: "tpu"}.get(attention, platform)
    if platform != needed:
        raise InputError(
            f"`attention`={attention}: runs on a {needed.upper()}, and this is a "
            f"{platform.upper()}; use xla"
        )


def attend(
    attention: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    texts: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes causal attention by "cudnn" (on a GPU) or "splash" (on a TPU).

    Args:
      attention: "cudnn" or "splash".
      query: `[B, T, N, H]`.
      key: `[B, T, K, H]`.
      value: `[B, T, K, H]`.
      scale: factor of the products of queries and keys.
      soft_cap: c in c * tanh(product / c).
      window: number of tokens that a token attends to, itself included; None for all
        before it.
      texts: `[B, T]` int32, for splash alone: numbers from 0 on that tell the texts of
        an example apart, none of which attends to another one. None for one text.
      interpret: whether to run splash as plain operations, on any device and slowly.

    Returns:
      `[B, T, N, H]`; values at padding are arbitrary.

    Raises:
      ValueError: for texts and "cudnn".
    """
    if attention == CUDNN:
        if texts is not None:
            raise ValueError("cudnn has no examples of several texts")
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            scale=scale,
            is_causal=True,
            local_window_size=window and (window - 1, 0),
            implementation="cudnn",
        )
    run = functools.partial(
        _splash, soft_cap=soft_cap, window=window, interpret=interpret
    )
    query = (query * scale).astype(query.dtype)
    whole = () if texts is None else (texts,)
    return by_heads(run)(query, key, value, whole=whole)


def _splash(query, key, value, texts=None, *, soft_cap, window, interpret):
    """Runs the splash kernel on one device; pads shapes to the kernel's block sizes."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    length, head_dim = query.shape[1], query.shape[-1]
    block = min(_BLOCK, -(-length // _LANES) * _LANES)
    longer = -length % block
    wider = -head_dim % _LANES

    def padded(x):
        x = jnp.pad(x, ((0, 0), (0, longer), (0, 0), (0, wider)))
        return x.swapaxes(1, 2)

    shape = (length + longer, length + longer)
    mask = masks.CausalMask(shape)
    if window is not None:
        mask = masks.LocalMask(shape, (window - 1, 0), 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq")
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * query.shape[2]),
        block_sizes=kernels.BlockSizes(
            **{f"block_{name}": block for name in (*names, "kv_dq")}
        ),
        attn_logits_soft_cap=soft_cap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    arguments = [*map(padded, (query, key, value))]
    if texts is not None:
        # What is filled in is a text of its own, since each token has to see some.
        texts = jnp.pad(texts, ((0, 0), (0, longer)), constant_values=-1)
        arguments.append(kernels.SegmentIds(texts, texts))
    out = jax.vmap(kernel)(*arguments)
    return out.swapaxes(1, 2)[:, :length, :, :head_dim]
