"""Specifies which parameters are modulated: ordered (path pattern, modulation) pairs.

A path is the keys of a parameter tree joined by "/", as in `params/Dense_0/kernel`. A
pattern is a regular expression that must match the full path. The first pattern that
matches decides, and `None` as its modulation leaves the parameter unmodulated.
"""

import ast
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax

from .leaf import Delta

Spec = Sequence[tuple[str, "Modulation | None"]]

_SIDES = ("input", "output", "both")

# What of a learned low rank starts at zero, see `hypernet`.
GATES, OUTPUTS = ZEROS = ("gates", "outputs")


@dataclasses.dataclass(frozen=True)
class Modulation:
    """How z changes one parameter; see `scale`, `shift`, `low_rank` and `lora`.

    Modulations are combined with `+`. Each parameter has input axes and output axes: by
    default the last axis is the output, as in `x @ w` and convolutions, and all others
    are inputs; `layout` changes that.

    Attributes:
      scales: sides that are scaled, each "input" or "output".
      shifts: sides that are shifted.
      ranks: (rank, kind) of each low-rank term, see `low_rank` and `lora`.
      output: output axes.
      input: input axes; all other axes if None.
      stacked: whether the leading axis stacks layers, each with its own modulation.
    """

    scales: tuple[str, ...] = ()
    shifts: tuple[str, ...] = ()
    ranks: tuple[tuple[int, str], ...] = ()
    output: tuple[int, ...] = (-1,)
    input: tuple[int, ...] | None = None
    stacked: bool = False

    def layout(
        self,
        output: int | Sequence[int] = -1,
        input: int | Sequence[int] | None = None,
        *,
        stacked: bool = False,
    ) -> "Modulation":
        """Declares the roles of the parameter's axes.

        Args:
          output: output axis or axes, stacked axis counted; negative from the end.
          input: input axes; all remaining axes by default. `()` declares a parameter
            without inputs, such as a bias over heads and features.
          stacked: whether the leading axis stacks layers, as under `jax.lax.scan`.
        """
        return dataclasses.replace(
            self,
            output=_tuple(output),
            input=None if input is None else _tuple(input),
            stacked=stacked,
        )

    def __add__(self, other: "Modulation") -> "Modulation":
        """Combines two modulations; the layout is that of the first which has one."""
        default = Modulation().layout_fields
        layout = self if self.layout_fields != default else other
        if other.layout_fields not in (default, layout.layout_fields):
            raise ValueError(
                f"modulations of one parameter have two layouts: {self} and {other}"
            )
        return dataclasses.replace(
            layout,
            scales=self.scales + other.scales,
            shifts=self.shifts + other.shifts,
            ranks=self.ranks + other.ranks,
        )

    @property
    def layout_fields(self) -> tuple:
        """The fields that `layout` sets."""
        return self.output, self.input, self.stacked

    def __str__(self) -> str:
        parts = [f"scale({side})" for side in self.scales]
        parts += [f"shift({side})" for side in self.shifts]
        parts += [
            f"lora({rank})" if kind == "shared" else f"low_rank({rank}, {kind})"
            for rank, kind in self.ranks
        ]
        return " + ".join(parts) + (", stacked" if self.stacked else "")


def _tuple(axes: int | Sequence[int]) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)


def scale(side: str = "output") -> Modulation:
    """Modulates to `w * (1 + delta(z))` along one side, or by `(1 + d_in)(1 + d_out)`.

    Scaling the output of a layer and shifting its bias is FiLM (Perez et al. 2018).

    Args:
      side: "input", "output" or "both".
    """
    return Modulation(scales=_sides(side))


def shift(side: str = "output") -> Modulation:
    """Modulates to `w + beta(z)` along one side or both: a per-user bias.

    Args:
      side: "input", "output" or "both".
    """
    return Modulation(shifts=_sides(side))


def _sides(side: str) -> tuple[str, ...]:
    if side not in _SIDES:
        raise ValueError(
            f"`side` is one of {', '.join(_SIDES)}, not {side!r}: a delta of the "
            "parameter's full shape for each user is not offered"
        )
    return ("input", "output") if side == "both" else (side,)


def low_rank(rank: int, *, factors: str = "learned") -> Modulation:
    """Modulates to `w + sum_r a_r s_r(z) b_r`, a over input axes, b over output axes.

    Args:
      rank: R.
      factors: "learned" for a basis a, b that all users share, so that z decides R
        numbers s; or "generated" for a(z) and b(z), without s.
    """
    if factors not in ("learned", "generated"):
        raise ValueError(f"`factors` is 'learned' or 'generated', not {factors!r}")
    return Modulation(ranks=((_rank(rank), factors),))


def lora(rank: int) -> Modulation:
    """Changes w to w + sum_r a_r b_r, the same for all z (Hu et al. 2021)."""
    return Modulation(ranks=((_rank(rank), "shared"),))


_NAMED = {"scale": scale, "shift": shift, "low_rank": low_rank, "lora": lora}


def parse(text: str) -> Modulation:
    """Parses the text of a modulation, as config files have it.

    Args:
      text: calls of `scale`, `shift`, `low_rank` and `lora` joined by "+", where a call
        without arguments needs no parentheses: "scale + low_rank(8)".

    Raises:
      ValueError: for any other text, and where those functions raise it.
    """

    def build(node):
        match node:
            case ast.BinOp(left, ast.Add(), right):
                return build(left) + build(right)
            case ast.Name(name) if name in _NAMED:
                return _NAMED[name]()
            case ast.Call(ast.Name(name), arguments, keywords) if name in _NAMED:
                named = {word.arg: ast.literal_eval(word.value) for word in keywords}
                return _NAMED[name](*map(ast.literal_eval, arguments), **named)
        raise ValueError(f"only calls of {', '.join(_NAMED)} joined by + are allowed")

    try:
        return build(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"modulation {text!r}: {error}") from None


def _rank(rank: int) -> int:
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"`rank` is a positive integer, not {rank!r}")
    return rank


@dataclasses.dataclass(frozen=True)
class Part:
    """The shape and origin of one array of a modulation.

    Attributes:
      shape: shape of the array; a factor's last axis is the rank.
      per_user: whether z decides it; otherwise it is learned and all users share it.
      std: standard deviation of its initial values, at z = 0 if it is per user.
      slope: standard deviation of the map from z to it, if it is per user.
    """

    shape: tuple[int, ...]
    per_user: bool
    std: float = 0.0
    slope: float = 0.0


def parts(
    path: str, modulation: Modulation, shape: tuple[int, ...], zero: str = GATES
) -> Delta:
    """Returns the arrays that modulate a parameter of this shape.

    Args:
      path: the parameter's path, for messages.
      modulation: how it is modulated.
      shape: its shape.
      zero: see `hypernet`.

    Returns:
      A `Delta` with a `Part` in place of each array.

    Raises:
      ValueError: if the modulation does not fit; the message names the path, the
        modulation and the shape.
    """
    axes = axes_of(path, modulation, shape)

    def along(*sides):
        keep = [axis for side in (*sides, "stacked") for axis in axes[side]]
        return tuple(n if i in keep else 1 for i, n in enumerate(shape))

    is_scalar = len(shape) == len(axes["stacked"])
    for side in (*modulation.scales, *modulation.shifts):
        if not axes[side] and not (is_scalar and side == "output"):
            raise ValueError(_misfit(path, modulation, shape, f"it has no {side} axis"))
    if modulation.ranks and not (axes["input"] and axes["output"]):
        reason = "low rank needs an input and an output axis"
        raise ValueError(_misfit(path, modulation, shape, reason))
    fan_in = math.prod(shape[i] for i in axes["input"])
    terms = [(Part((*along(side), 1), True),) for side in modulation.shifts]
    for rank, kind in modulation.ranks:
        a, b = (*along("input"), rank), (*along("output"), rank)
        if kind == "learned":
            is_open = zero == OUTPUTS
            gate = Part((*along(), rank), True, slope=float(is_open))
            output = Part(b, False, 0.0 if is_open else rank**-0.5)
            terms.append((Part(a, False, fan_in**-0.5), gate, output))
        else:
            per_user = kind == "generated"
            terms.append((Part(a, per_user, fan_in**-0.5), Part(b, per_user)))
    scales = tuple(Part(along(side), True) for side in modulation.scales)
    return Delta(scales, tuple(terms))


def axes_of(path: str, modulation: Modulation, shape: tuple[int, ...]) -> dict:
    """Returns the axes of the roles "input", "output" and "stacked", from the front.

    Raises:
      ValueError: as `parts`.
    """
    stacked = (0,) if modulation.stacked else ()
    rest = len(shape) - len(stacked)
    if rest < 0:
        raise ValueError(_misfit(path, modulation, shape, "too few axes"))
    if rest == 0 and modulation.output == (-1,):
        # A scalar, such as a temperature, is its only output.
        return {"input": (), "output": (), "stacked": stacked}

    def normal(axes):
        for axis in axes:
            if not -len(shape) <= axis < len(shape):
                raise ValueError(_misfit(path, modulation, shape, f"no axis {axis}"))
        return tuple(axis % len(shape) for axis in axes)

    output = normal(modulation.output)
    others = [i for i in range(len(shape)) if i not in output and i not in stacked]
    inputs = tuple(others) if modulation.input is None else normal(modulation.input)
    if len({*output, *inputs, *stacked}) < len(output) + len(inputs) + len(stacked):
        raise ValueError(_misfit(path, modulation, shape, "an axis has two roles"))
    if modulation.input is None and not inputs and rest > 1:
        raise ValueError(
            _misfit(path, modulation, shape, "it would be a full delta for each user")
            + "; for a bias over several axes use layout(output, input=())"
        )
    return {"input": inputs, "output": output, "stacked": stacked}


def _misfit(path, modulation, shape, reason: str) -> str:
    size = "x".join(map(str, shape)) or "scalar"
    return f"{path} ({size}) cannot take {modulation}: {reason}"


def path_name(path: Sequence[Any]) -> str:
    """Formats a key path as it is matched and reported."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def resolve(spec: Spec, params: Any) -> dict[str, tuple[Modulation, Any]]:
    """Finds the parameters that a spec modulates.

    Args:
      spec: see the module docstring.
      params: any pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      {path: (modulation, parameter)} in the tree's order.

    Raises:
      ValueError: for a pattern that decides no parameter or is no regular expression,
        and for a modulation that does not fit its parameter.
    """
    leaves = {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    patterns = []
    for pattern, modulation in spec:
        if not isinstance(modulation, Modulation | None):
            raise TypeError(f"pattern {pattern!r}: {modulation!r} is no Modulation")
        try:
            patterns.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(
                f"pattern {pattern!r} is no regular expression: {error}"
            ) from None
    found, used = {}, set()
    for path, leaf in leaves.items():
        matching = (n for n, p in enumerate(patterns) if p.fullmatch(path))
        n = next(matching, None)
        if n is None:
            continue
        used.add(n)
        modulation = spec[n][1]
        if modulation is not None:
            parts(path, modulation, leaf.shape)
            found[path] = (modulation, leaf)
    for n, pattern in enumerate(patterns):
        if n not in used:
            earlier = any(pattern.fullmatch(path) for path in leaves)
            reason = (
                "matches only what an earlier pattern matches"
                if earlier
                else f"matches none of {len(leaves)} parameters ({_sample(leaves)})"
            )
            modulation = spec[n][1] or "no modulation"
            raise ValueError(f"pattern {pattern.pattern!r} ({modulation}) {reason}")
    return found


def _sample(leaves) -> str:
    names = list(leaves)
    return (
        ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        or "the tree is empty"
    )
