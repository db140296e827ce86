"""Which axes of a layer's parameters are inputs and outputs, for four libraries.

Each table has the layers of a library by the name of their class, and a function
`(layer, name, ndim) -> Layout | None` of a parameter's name and of the number of axes
that the layer itself gives it, which is None where only the layer can tell. A layer
made of other layers, such as attention or a recurrent cell of Flax, is in no table,
since its parts are. No library is imported.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from .spec import Modulation


@dataclasses.dataclass(frozen=True)
class Layout:
    """The roles of a parameter's axes, counted from the end.

    Attributes:
      role: "kernel", "embedding", "norm" for the gain of a normalisation, or "bias".
      output: output axes.
      input: input axes.
      window: axes along which a convolution slides, and others without a role.
    """

    role: str
    output: tuple[int, ...]
    input: tuple[int, ...] = ()
    window: tuple[int, ...] = ()

    @property
    def ndim(self) -> int:
        """Number of axes, without one of stacked layers."""
        return len(self.output) + len(self.input) + len(self.window)

    def of(self, modulation: Modulation, ndim: int) -> Modulation:
        """Declares the axes of a modulation for a parameter with `ndim` axes.

        The window of a convolution belongs to the inputs, as in LoRA of convolutions;
        but not if inputs are scaled or shifted, since a scale along the window does not
        separate.
        """
        sides = modulation.scales + modulation.shifts
        slides = self.role == "kernel" and "input" not in sides
        inputs = sorted((*self.window, *self.input) if slides else self.input)
        return modulation.layout(self.output, inputs, stacked=ndim > self.ndim)


Layer = Callable[[Any, str, int | None], Layout | None]

DENSE = Layout("kernel", (-1,), (-2,))
OUTPUT_FIRST = Layout("kernel", (-2,), (-1,))
EMBEDDING = Layout("embedding", (-1,), (-2,))


def _last(count: int, before: int = 0) -> tuple[int, ...]:
    """The `count` axes that come before the last `before` axes."""
    return tuple(range(-count - before, -before))


def _vector(role: str, ndim: int | None) -> Layout:
    return Layout(role, _last(ndim or 1))


def _count(sizes: Any) -> int:
    return 1 if isinstance(sizes, int) else len(sizes)


def _dense(layer, name, ndim):
    return DENSE if name in ("kernel", "w", "w_i", "w_h") else _vector("bias", ndim)


def _embedding(layer, name, ndim):
    return EMBEDDING


def _norm(layer, name, ndim):
    role = "norm" if name in ("scale", "weight") else "bias"
    return _vector(role, ndim or _count(getattr(layer, "shape", 1)))


def _nothing(layer, name, ndim):
    """Of layers that compute with their weights first, which nothing separates."""


def _dense_general(layer, name, ndim):
    if hasattr(layer, "out_features"):  # NNX
        inputs, outputs = _count(layer.in_features), _count(layer.out_features)
    else:
        inputs, outputs = _count(layer.axis), _count(layer.features)
    if name == "bias":
        return _vector("bias", outputs)
    return Layout("kernel", _last(outputs), _last(inputs, outputs))


def _einsum(layer, name, ndim):
    if layer.einsum_str is None:
        return None
    operands, out = layer.einsum_str.replace(" ", "").split("->")
    x, w = operands.split(",")

    def where(role):
        return tuple(n - len(w) for n, label in enumerate(w) if role(label))

    outputs = where(lambda label: label in out and label not in x)
    if name == "bias":
        return _vector("bias", ndim or len(outputs))
    inputs = where(lambda label: label in x and label not in out)
    others = where(lambda label: label in x and label in out)
    return Layout("kernel", outputs, inputs, others)


def _conv(layer, name, ndim):
    window = _last(_count(layer.kernel_size), 2)
    if name == "bias":
        return _vector("bias", ndim)
    if getattr(layer, "transpose_kernel", False):
        return Layout("kernel", (-2,), (-1,), window)
    return Layout("kernel", (-1,), (-2,), window)


def _equinox_dense(layer, name, ndim):
    return OUTPUT_FIRST if name.startswith("weight") else _vector("bias", 1)


def _equinox_conv(layer, name, ndim):
    n = layer.num_spatial_dims
    if name == "bias":
        return Layout("bias", (-n - 1,), (), _last(n))
    return Layout("kernel", (-n - 2,), (-n - 1,), _last(n))


def _haiku_conv(layer, name, ndim):
    if name == "b":  # `[features]`, or `[features, 1, ...]` where channels come first.
        return Layout("bias", (-ndim,), (), _last(ndim - 1))
    return Layout("kernel", (-1,), (-2,), _last(ndim - 2, 2))


def _haiku_conv_transpose(layer, name, ndim):
    if name == "b":
        return _haiku_conv(layer, name, ndim)
    return Layout("kernel", (-2,), (-1,), _last(ndim - 2, 2))


_FLAX: dict[str, Layer] = {
    **dict.fromkeys(("Dense", "DenseParams", "Linear"), _dense),
    **dict.fromkeys(("DenseGeneral", "LinearGeneral"), _dense_general),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(
        ("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm", "InstanceNorm"), _norm
    ),
    "Einsum": _einsum,
    "Embed": _embedding,
}
LINEN = NNX = _FLAX
EQUINOX: dict[str, Layer] = {
    **dict.fromkeys(("Linear", "GRUCell", "LSTMCell"), _equinox_dense),
    **dict.fromkeys(("Conv", "ConvTranspose"), _equinox_conv),
    **dict.fromkeys(("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm"), _norm),
    **dict.fromkeys(("WeightNorm", "SpectralNorm"), _nothing),
    "Embedding": _embedding,
}
HAIKU: dict[str, Layer] = {
    **dict.fromkeys(("Linear", "GRU"), _dense),
    **dict.fromkeys(("ConvND", "DepthwiseConvND"), _haiku_conv),
    **dict.fromkeys(("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm"), _norm),
    "ConvNDTranspose": _haiku_conv_transpose,
    "Embed": _embedding,
}


def find(table: dict[str, Layer], layer: Any) -> Layer | None:
    """Finds the function of a layer, or of the class that its own derives from."""
    names = (kind.__name__ for kind in type(layer).__mro__)
    return next((table[name] for name in names if name in table), None)
