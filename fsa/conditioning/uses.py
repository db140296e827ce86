"""What `report` returns: the uses of conditioned parameters, and what a call costs."""

import dataclasses
import math
from collections.abc import Sequence

from .program_cost import Cost


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of a conditioned parameter by a primitive.

    Attributes:
      path: path of the parameter.
      shape: shape of the parameter when the primitive takes it.
      primitive: name of the primitive; "condition" if the parameter is no larger than
        its modulation and is built at once.
      source: file and line of the model.
      bytes_per_user: size of the array that is built, 0 if the use is part by part.
      reason: why it is built, "" if it is not.
      numbers_per_token: numbers that are read for each token of a packed example, 0 if
        the parameter does not differ by segment.
    """

    path: str
    shape: tuple[int, ...]
    primitive: str
    source: str
    bytes_per_user: int
    reason: str
    numbers_per_token: int = 0


@dataclasses.dataclass(frozen=True)
class Report:
    """Every use of every conditioned parameter; prints as a table, with the cost.

    Attributes:
      uses: the uses, in the order of the program.
      cost: of one call with conditioned parameters, without the hypernetwork.
      unconditioned: of one call with the parameters alone.
      folding: of folding the parameters for a user, once; its bytes are those of the
        folded parameters. None if they differ by segment and cannot be folded.
    """

    uses: tuple[Use, ...]
    cost: Cost
    unconditioned: Cost
    folding: Cost | None

    @property
    def ratio(self) -> float:
        """Operations of a call, relative to the unconditioned model."""
        return self.cost.flops / max(self.unconditioned.flops, 1)

    @property
    def calls_to_fold(self) -> float:
        """Calls for one user from which on folding takes no more operations.

        It is infinite if parameters cannot be folded, or a call costs no more.
        """
        saved = self.cost.flops - self.unconditioned.flops
        if self.folding is None or saved <= 0:
            return math.inf
        return max(1.0, math.ceil(self.folding.flops / saved))

    @property
    def materialized(self) -> tuple[Use, ...]:
        """The uses that build an array as large as the weight for each user."""
        return tuple(use for use in self.uses if use.bytes_per_user)

    def __str__(self) -> str:
        head = ("parameter", "shape", "primitive", "bytes per user", "how", "where")
        rows = [
            (
                use.path,
                "x".join(map(str, use.shape)),
                use.primitive,
                f"{use.bytes_per_user:,}",
                _how(use),
                use.source,
            )
            for use in self.uses
        ]
        return "\n".join([table([head, *rows]), *self._costs(), *self._advice()])

    def _costs(self) -> list[str]:
        own, plain = self.cost, self.unconditioned
        lines = [
            f"One call: {_short(own.flops)}FLOP, {self.ratio:.3f} times those of the "
            f"unconditioned model; {_short(own.bytes)}B in products and look-ups, "
            f"{own.bytes / max(plain.bytes, 1):.3f} times."
        ]
        tokens = sum(use.numbers_per_token for use in self.uses)
        if tokens:
            lines.append(f"Each token reads {tokens:,} numbers of its segment.")
        return lines

    def _advice(self) -> list[str]:
        built = ", ".join(sorted({use.path for use in self.materialized}))
        lines = []
        if built:
            lines.append(f"Built in each call: {built}. Folding once is better there.")
        if self.folding is not None and self.calls_to_fold < math.inf:
            lines.append(
                f"Folding is as good from {self.calls_to_fold:,.0f} calls for one user "
                f"on: it costs {_short(self.folding.flops)}FLOP once, and "
                f"{_short(self.folding.bytes)}B of memory for each user."
            )
        return lines


def _short(number: int) -> str:
    """Formats a number with the prefix of its size, as 12.3 M."""
    for size, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number} "


def _how(use: Use) -> str:
    if use.bytes_per_user:
        return f"materialised: {use.reason}"
    if use.numbers_per_token:
        return f"by parts, {use.numbers_per_token:,} numbers a token"
    return "by parts"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows, of which the first is the head, as left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
