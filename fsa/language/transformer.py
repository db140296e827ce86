"""Decoder-only transformers: Llama, Qwen and Gemma from one set of parts.

Plain keyword attributes tell the families apart; `huggingface.architecture` reads them
from a `config.json`. The parameters of all layers are stacked on a leading axis, over
which `lax.scan` runs; `unstacked` makes a model whose layers are apart.

Shapes: B examples, T tokens of a call, S slots of the cache (T without one), L layers,
W width, N query heads, K key and value heads, H features of a head, V vocabulary.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax
from jax.sharding import PartitionSpec as P

from fsa.language import attention_kernels
from fsa.language.layers import (
    ACTIVATIONS,
    MAPS,
    MLP,
    Attended,
    Attention,
    Layer,
    RMSNorm,
    soft_capped,
)
from fsa.language.token_scores import token_log_probs
from fsa.parallel.sharding import FSDP, TENSOR, Rules, constrain

# How parameters are split over a mesh, see `fsa.parallel.sharding`. Heads, hidden units
# and the vocabulary are split over `tensor`; `fsdp` splits hidden units and the
# vocabulary as well, and the width in attention; norms are replicated. Of a kernel
# `fsdp` splits the longer side, since XLA for TPU reduces and scatters gradients in one
# operation only if parts are whole tiles, and sends twice as much otherwise
# (docs/dry_runs.md).
SHARDING_RULES: Rules = (
    ("embed/embedding", P((TENSOR, FSDP))),
    ("embed/embedding", P(TENSOR, FSDP)),
    ("unembed/kernel", P(None, (TENSOR, FSDP))),
    ("unembed/kernel", P(FSDP, TENSOR)),
    ("attention/(query|key|value)/kernel", P(None, FSDP, TENSOR)),
    ("attention/(query|key|value)/bias", P(None, TENSOR, FSDP)),
    ("attention/out/kernel", P(None, TENSOR, None, FSDP)),
    ("mlp/(gate|up)/kernel", P(None, None, (TENSOR, FSDP))),
    ("mlp/(gate|up)/kernel", P(None, FSDP, TENSOR)),
    ("mlp/(gate|up)/bias", P(None, (TENSOR, FSDP))),
    ("mlp/down/kernel", P(None, (TENSOR, FSDP))),
    ("mlp/down/kernel", P(None, TENSOR, FSDP)),
    ("(attention/out|mlp/down)/bias", P(None, FSDP)),
)

# Logits of one example that `Transformer.log_probs` holds at once, by default.
_LOGITS_AT_ONCE = 2**24


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in S slots.

    Under `jax.vmap`, map all fields but `index`, which all examples share.

    Attributes:
      keys: `[L, B, K, S, H]`: heads come before slots, as the products of attention
        take them, so that no step transposes the whole cache. Of a model whose layers
        are apart, a tuple with an array `[B, K, S, H]` for each layer.
      values: like `keys`.
      mask: `[B, S]`, true where a slot holds a real token.
      index: `[]`, the slot that the next token goes to.
    """

    keys: jax.Array
    values: jax.Array
    mask: jax.Array
    index: jax.Array


class Unembedding(nn.Module):
    """The map from states to logits, in models that do not use the embedding for it.

    Attributes:
      shape: (W, V).
      param_dtype: dtype of the kernel.
    """

    shape: tuple[int, int]
    param_dtype: Any

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the kernel."""
        init = nn.initializers.lecun_normal()
        return self.param("kernel", init, self.shape, self.param_dtype)


class Transformer(nn.Module):
    """A decoder-only language model.

    The real tokens of an example are contiguous, with padding left or right of them.
    Positions are counted over real tokens, so padding changes nothing.

    Attributes:
      vocab_size: V.
      width: W.
      num_layers: L.
      num_heads: N, a multiple of `num_kv_heads`.
      num_kv_heads: K.
      head_dim: H, even.
      mlp_width: width of the hidden layer of each MLP.
      activation: one of `ACTIVATIONS`.
      norm_epsilon: see `RMSNorm`.
      norm_offset: see `RMSNorm`.
      post_norms: see `Layer`.
      biases: linear maps of a layer that have a bias, of `fsa.language.layers.MAPS`.
      qk_norm: whether queries and keys are normalized (Qwen 3, Gemma 3).
      attention_scale: factor of the products of queries and keys; H^-1/2 if None.
      attention_soft_cap: see `Attention`.
      final_soft_cap: the same for logits.
      embedding_scale: factor of the embeddings (Gemma).
      tied: whether the embedding also maps states to logits.
      windows: for each layer None, or how many tokens a token attends to, itself
        included; None if no layer has a window.
      rope_theta: base of the rotary frequencies (Su et al. 2021).
      local_rope_theta: base for layers with a window, whose frequencies are not scaled;
        None if these layers rotate as the others do.
      rope_factor: rotary frequencies are divided by it.
      rope_band: None, or (low, high, length): frequencies with more than `high` turns
        in `length` tokens are kept, those with fewer than `low` are divided, and those
        in between are interpolated (Llama 3).
      remat: name of a policy in `jax.checkpoint_policies`, by which layers are computed
        again for gradients; None to keep all activations.
      attention: one of `attention_kernels.ATTENTIONS`. "xla" runs anywhere; "cudnn" on
        a GPU and "splash" on a TPU never hold all products of queries and keys, and
        need examples without padding on the left.
      dtype: dtype of the computation; norms, softmax and logits are in float32.
      param_dtype: dtype of the parameters.
      stacked: whether the parameters of all layers are stacked, see `unstacked`.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    activation: str = "silu"
    norm_epsilon: float = 1e-6
    norm_offset: float = 0.0
    post_norms: bool = False
    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    embedding_scale: float = 1.0
    tied: bool = False
    windows: tuple[int | None, ...] | None = None
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    rope_factor: float = 1.0
    rope_band: tuple[float, float, float] | None = None
    remat: str | None = None
    attention: str = attention_kernels.XLA
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    stacked: bool = True

    def setup(self):
        """Builds the submodules.

        Raises:
          ValueError: for sizes that do not fit, or names that do not exist.
        """
        self._check()
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = functools.partial(
            RMSNorm, self.norm_epsilon, self.norm_offset, self.param_dtype
        )
        attention = functools.partial(
            Attention,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.attention_scale or self.head_dim**-0.5,
            soft_cap=self.attention_soft_cap,
            biases=self.biases,
            kernel=self.attention,
            window=self._kinds()[0][0],
            norm=norm if self.qk_norm else None,
            **dtypes,
        )
        mlp = functools.partial(
            MLP, self.mlp_width, self.activation, self.biases, **dtypes
        )
        layer = Layer
        if self.remat:
            policy = getattr(jax.checkpoint_policies, self.remat)
            layer = nn.remat(Layer, policy=policy, prevent_cse=False)
        parts = attention, mlp, norm, self.post_norms
        self.embed = nn.Embed(self.vocab_size, self.width, **dtypes)
        if self.stacked:
            self.layers = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, nn.broadcast),
                length=self.num_layers,
            )(*parts)
        else:
            self.layers = [layer(*parts) for _ in range(self.num_layers)]
        self.final_norm = norm()
        if not self.tied:
            shape = (self.width, self.vocab_size)
            self.unembedding = Unembedding(shape, self.param_dtype, name="unembed")

    def _check(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError("num_heads has to be a multiple of num_kv_heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, but has to be even")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation has to be one of {', '.join(ACTIVATIONS)}")
        for name in self.biases:
            if name not in MAPS:
                raise ValueError(f"biases: {name!r} is none of {', '.join(MAPS)}")
        if self.remat and not hasattr(jax.checkpoint_policies, self.remat):
            raise ValueError(f"remat: jax.checkpoint_policies has no {self.remat!r}")
        if self.windows is not None and len(self.windows) != self.num_layers:
            raise ValueError("windows needs one entry for each layer")
        attention_kernels.check(
            self.attention,
            dtype=self.dtype,
            head_dim=self.head_dim,
            soft_cap=self.attention_soft_cap,
            windows=len(self._kinds()[0]),
        )

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Computes the logits of each next token.

        Args:
          tokens: `[B, T]` int32.
          mask: `[B, T]`, true where a token is real; all are if None.
          cache: keys and values of the tokens before these, with room for T more.
            Prefill and decoding are the same call.

        Returns:
          (logits `[B, T, V]` float32, the cache with these tokens); values at padding
          are arbitrary.

        Raises:
          ValueError: for more tokens than the cache has slots.
        """
        states, cache = self.hidden(tokens, mask=mask, cache=cache)
        return self.unembed(states), cache

    def hidden(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Computes states after the final norm, `[B, T, W]`, and the cache.

        Arguments and errors are those of `__call__`.
        """
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
        if cache is None:
            index, slots, stored = 0, mask, None
        else:
            if tokens.shape[1] > cache.mask.shape[1]:
                raise ValueError(
                    f"{tokens.shape[1]} tokens for a cache of {cache.mask.shape[1]}"
                )
            index, stored = cache.index, (cache.keys, cache.values)
            slots = lax.dynamic_update_slice(cache.mask, mask, (0, index))
        attended = self._attended(self._kinds()[0], slots, index, tokens.shape[1])
        states, stored = self._states(tokens, stored, attended)
        if cache is not None:
            cache = Cache(*stored, slots, index + tokens.shape[1])
        return states, cache

    def _states(self, tokens, stored, attended: Attended):
        """Returns states after the final norm, and keys and values as `stored`."""
        # Gathered over `fsdp`, but not over the vocabulary, here and in `_kernel`.
        embedding = constrain(self.embed.embedding.astype(self.dtype), TENSOR, None)
        x = jnp.take(embedding, tokens, axis=0)
        x = constrain(x * jnp.asarray(self.embedding_scale, x.dtype), None, None)
        layers, of_layer = jnp.arange(self.num_layers), self._kinds()[1]
        carry = x, stored
        if self.stacked:
            carry, _ = self.layers(carry, layers, of_layer, attended)
        else:
            written = []
            for i, layer in enumerate(self.layers):
                own = None if stored is None else (stored[0][i], stored[1][i])
                (x, own), _ = layer((x, own), None, of_layer[i], attended)
                written.append(own)
            carry = x, stored and tuple(zip(*written, strict=True))
        x, stored = carry
        return self.final_norm(x), stored

    def row_log_probs(
        self, tokens: jax.Array, begin: jax.Array, wanted: jax.Array
    ) -> jax.Array:
        """Computes log p(token | tokens before it in its text) for texts in one row.

        Positions start anew with each text, and no text sees another. Logits exist only
        for some of the tokens that are wanted at a time.

        Args:
          tokens: `[T]` int32, texts one after the other, then padding.
          begin: `[T]` int32, the place of the first token of each token's text; of
            padding its own.
          wanted: `[T]` bool, the tokens whose log-probability is wanted.

        Returns:
          `[T]` float32, in nats; 0 for the first token of a text, which has none before
          it, and where it is not wanted.
        """
        at = jnp.arange(len(tokens))
        kinds = self._kinds()[0]
        splash = self.attention == attention_kernels.SPLASH
        windows = [None if splash else window for window in kinds]
        first = [
            begin if w is None else jnp.maximum(begin, at - w + 1) for w in windows
        ]
        attended = Attended(*self._angles(kinds, at - begin), jnp.stack(first), 0)
        states, _ = self._states(tokens, None, attended)
        kernel = self._kernel()
        scores = token_log_probs(
            states[:-1],
            kernel if self.tied else kernel.T,
            tokens[1:],
            (wanted & (begin < at))[1:],
            soft_cap=self.final_soft_cap,
            # A TPU reads the kernel faster than few tokens use it.
            block=max(8, _LOGITS_AT_ONCE // self.vocab_size) if splash else None,
        )
        return jnp.pad(scores, (1, 0))

    def _kinds(self) -> tuple[list[int | None], jax.Array]:
        """Returns the distinct windows, and the index of each layer's among them."""
        windows = self.windows or (None,) * self.num_layers
        kinds = list(dict.fromkeys(windows))
        return kinds, jnp.array([kinds.index(window) for window in windows])

    def _attended(self, kinds, slots, index, length) -> Attended:
        """Computes angles and masks of the tokens in slots [index, index + length).

        `slots` `[B, S]` is true where a slot holds a real token.
        """
        positions = jnp.maximum(jnp.cumsum(slots, axis=1) - 1, 0)
        own = lax.dynamic_slice_in_dim(positions, index, length, axis=1)
        back = own[:, :, None] - positions[:, None]
        order = jnp.arange(slots.shape[1])
        causal = order <= (index + jnp.arange(length))[:, None]
        causal = causal & slots[:, None]
        masks = [causal if w is None else causal & (back < w) for w in kinds]
        return Attended(*self._angles(kinds, own), jnp.stack(masks), index)

    def _angles(self, kinds, positions) -> tuple[jax.Array, jax.Array]:
        """Returns sines and cosines `[kinds, ..., T, H / 2]` at positions."""
        frequencies = jnp.stack([self._frequencies(w) for w in kinds])
        frequencies = frequencies.reshape(len(kinds), *[1] * positions.ndim, -1)
        angles = positions[..., None] * frequencies
        return jnp.sin(angles), jnp.cos(angles)

    def _frequencies(self, window: int | None) -> np.ndarray:
        """Returns rotary frequencies of a kind of layer: `[H / 2]`, radians a token."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / self.head_dim
        if window is not None and self.local_rope_theta is not None:
            return 1 / np.float32(self.local_rope_theta) ** exponents
        frequencies = 1 / np.float32(self.rope_theta) ** exponents
        if self.rope_band is None:
            return frequencies / np.float32(self.rope_factor)
        low, high, length = self.rope_band
        turns = length * frequencies / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        mixed = (1 - kept) * frequencies / self.rope_factor + kept * frequencies
        return mixed.astype(np.float32)

    def unembed(self, states: jax.Array) -> jax.Array:
        """Returns logits `[..., V]` float32 of states `[..., W]`."""
        return self._logits(states, self._kernel())

    def _kernel(self) -> jax.Array:
        if self.tied:
            return constrain(self.embed.embedding.astype(self.dtype), TENSOR, None)
        return constrain(self.unembedding().astype(self.dtype), None, TENSOR)

    def _logits(self, states, kernel):
        products = "...w,vw->...v" if self.tied else "...w,wv->...v"
        logits = jnp.einsum(products, states, kernel, preferred_element_type="float32")
        return soft_capped(constrain(logits, TENSOR), self.final_soft_cap)

    def log_probs(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        chunk: int | None = None,
    ) -> jax.Array:
        """Computes log p(token | tokens before it), `[B, T]` float32 in nats.

        It is 0 for the first real token, which has none before it, and for padding.
        Logits are held for `chunk` tokens of each example at a time, in gradients as
        well.

        Args:
          tokens: `[B, T]` int32.
          mask: `[B, T]`, true where a token is real; all are if None.
          chunk: by default as many tokens as have 16 million logits in one example.
        """
        states, _ = self.hidden(tokens, mask=mask)
        return self.score(states, tokens, mask=mask, chunk=chunk)

    def score(
        self,
        states: jax.Array,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        chunk: int | None = None,
    ) -> jax.Array:
        """Computes `log_probs` from the states `[B, T, W]` that `hidden` returned."""
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
        kernel = self._kernel()

        def score(states, targets):
            logits = self._logits(states, kernel)
            # A sum, since indexing a vocabulary that is split over devices would gather
            # all logits.
            is_target = jnp.arange(self.vocab_size) == targets[..., None]
            chosen = jnp.sum(logits, axis=-1, where=is_target)
            return chosen - jax.nn.logsumexp(logits, axis=-1)

        chunk = chunk or max(1, _LOGITS_AT_ONCE // self.vocab_size)
        scores = _in_chunks(score, chunk, states[:, :-1], tokens[:, 1:])
        scores = jnp.where(mask[:, 1:] & mask[:, :-1], scores, 0.0)
        return jnp.pad(scores, ((0, 0), (1, 0)))


def _in_chunks(fn, chunk: int, *arrays: jax.Array) -> jax.Array:
    """Applies `fn` to arrays `[B, T, ...]`, at most `chunk` tokens at a time."""
    batch, length = arrays[0].shape[:2]
    if length <= chunk:
        return fn(*arrays)
    number = -(-length // chunk)
    size = -(-length // number)

    def split(x):
        widths = [(0, 0), (0, number * size - length)] + [(0, 0)] * (x.ndim - 2)
        padded = jnp.pad(x, widths)
        return padded.reshape(batch, number, size, *x.shape[2:]).swapaxes(0, 1)

    out = lax.map(jax.checkpoint(lambda xs: fn(*xs)), tuple(map(split, arrays)))
    return out.swapaxes(0, 1).reshape(batch, -1)[:, :length]


def with_biases(
    model: Transformer, variables: Any, names: Iterable[str]
) -> tuple[Transformer, Any]:
    """Adds biases of zero to a model, which then computes the same; for z to shift.

    Args:
      model: a model that may lack some of the biases.
      variables: its variables; the result shares their arrays.
      names: linear maps that need a bias, see `Transformer.biases`.

    Returns:
      (model, variables), the given ones if no bias is missing.

    Raises:
      ValueError: for a name that is not a linear map of a layer.
    """
    missing = [name for name in dict.fromkeys(names) if name not in model.biases]
    if not missing:
        return model, variables
    model = model.clone(biases=(*model.biases, *missing))

    def init():
        return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))

    wanted = traverse_util.flatten_dict(jax.eval_shape(init))
    flat = traverse_util.flatten_dict(variables)
    for name in missing:
        path = ("params", "layers", *name.split("/"), "bias")
        flat[path] = jnp.zeros(wanted[path].shape, wanted[path].dtype)
    return model, traverse_util.unflatten_dict(flat)


def unstacked(model: Transformer, variables: Any) -> tuple[Transformer, Any]:
    """Makes a model whose layers are apart, which computes the same.

    On a CPU, `lax.scan` copies the parameters of each layer before it uses them, which
    takes as long as a step of decoding itself. The new arrays are views of the given
    ones, so that they take no memory.

    Args:
      model: a model with stacked layers.
      variables: its variables, on the CPU; plain arrays.
    """
    params = dict(variables["params"])
    stack = jax.tree.map(np.asarray, params.pop("layers"))
    for i in range(model.num_layers):
        params[f"layers_{i}"] = jax.tree.map(
            lambda x, i=i: jax.device_put(x[i], may_alias=True), stack
        )
    return model.clone(stacked=False), {"params": params}


def init_cache(model: Transformer, batch: int, length: int, dtype: Any = None) -> Cache:
    """Makes an empty cache.

    Args:
      model: the model whose keys and values it will hold.
      batch: B.
      length: S, enough for the prompt, its padding and all tokens that follow.
      dtype: dtype of keys and values; `model.dtype` if None.
    """
    shape = (batch, model.num_kv_heads, length, model.head_dim)

    def empty():
        if model.stacked:
            return jnp.zeros((model.num_layers, *shape), dtype or model.dtype)
        layers = range(model.num_layers)
        return tuple(jnp.zeros(shape, dtype or model.dtype) for _ in layers)

    return Cache(
        keys=empty(),
        values=empty(),
        mask=jnp.zeros((batch, length), bool),
        index=jnp.zeros((), jnp.int32),
    )
