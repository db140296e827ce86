"""Estimates what a product with a conditioned weight costs, from its shapes alone.

Three ways are compared for U users with T tokens each: the unconditioned product, the
product part by part (`products.py`), and weights folded for each user. For a weight
`[I, O]`, a low rank of R adds `2 T R (I + O)` operations a user part by part, and
`2 R I O` a user if folded, so folding costs fewer of them above `I O / (I + O)` tokens;
but a folded weight is written and read for each user, which takes memory of U weights.

Shapes: U users, T tokens of each, I inputs, O outputs, R rank.
"""

import dataclasses

# Operations that a device does while it moves one byte: about 10 on one core of a CPU.
# An accelerator does 100 to 300.
OPERATIONS_PER_BYTE = 10.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one way costs for all users.

    Attributes:
      operations: floating-point operations.
      bytes: bytes of arrays that are read or written, each counted once.
      extra_bytes: bytes of arrays that the unconditioned product does not store.
    """

    operations: float
    bytes: float
    extra_bytes: float = 0.0

    def time(self, operations_per_byte: float = OPERATIONS_PER_BYTE) -> float:
        """Time in units of one operation, if arithmetic and memory overlap."""
        return max(self.operations, self.bytes * operations_per_byte)


def plain(users: int, tokens: int, inputs: int, outputs: int, itemsize: int = 4):
    """Cost of the unconditioned product of U T rows with one weight."""
    rows = users * tokens
    numbers = inputs * outputs + rows * (inputs + outputs)
    return Cost(2.0 * rows * inputs * outputs, float(itemsize * numbers))


def by_parts(
    users: int,
    tokens: int,
    inputs: int,
    outputs: int,
    *,
    rank: int = 0,
    scaled: bool = True,
    generated: bool = False,
    itemsize: int = 4,
) -> Cost:
    """Cost of `(x @ w) * (1 + scale) + ((x @ a) * s) @ b`.

    Args:
      users: U.
      tokens: T.
      inputs: I.
      outputs: O.
      rank: R, 0 for no low rank.
      scaled: whether outputs are scaled.
      generated: whether each user has factors of their own, not a shared basis.
      itemsize: bytes of a number.
    """
    base, rows = plain(users, tokens, inputs, outputs, itemsize), users * tokens
    copies = users if generated else 1
    operations = rows * (2 * rank * (inputs + outputs) + rank + outputs * bool(rank))
    numbers = copies * rank * (inputs + outputs)
    numbers += rows * (inputs + 2 * rank + outputs) * bool(rank)
    if scaled:
        operations += rows * outputs
        numbers += (rows + users) * outputs
    return Cost(
        base.operations + operations,
        base.bytes + itemsize * numbers,
        float(itemsize * (rows * rank + users * outputs * scaled)),
    )


def folded(
    users: int,
    tokens: int,
    inputs: int,
    outputs: int,
    *,
    rank: int = 0,
    scaled: bool = True,
    itemsize: int = 4,
) -> Cost:
    """Cost of weights that are built for each user, and of the products with them."""
    base = plain(users, tokens, inputs, outputs, itemsize)
    entries = users * inputs * outputs
    return Cost(
        base.operations + entries * (2.0 * rank + scaled),
        base.bytes + 2.0 * itemsize * entries,
        float(itemsize * entries),
    )


def ratio(
    way: Cost, reference: Cost, operations_per_byte: float = OPERATIONS_PER_BYTE
) -> float:
    """Expected time of one way as a ratio to another, such as `plain`.

    It leaves out the fixed cost of each operation of a program, which decides at widths
    of 128 and below.
    """
    return way.time(operations_per_byte) / reference.time(operations_per_byte)


def folding_is_as_good(
    users: int, tokens: int, inputs: int, outputs: int, *, rank: int, **options
) -> bool:
    """Whether weights folded per user are expected to cost no more time.

    So it is for one user who has many tokens. The memory of U weights is not weighed.
    """
    sizes = users, tokens, inputs, outputs
    return folded(*sizes, rank=rank).time(**options) <= by_parts(
        *sizes, rank=rank
    ).time(**options)
