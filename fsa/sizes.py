"""Padded sizes of arrays: few sizes, so that few programs are compiled."""

# Numbers up to these all have one size, so that a second call with other numbers runs
# the program of the first: a person's choices, prompts, tokens of a prompt, and tokens
# that are generated.
FEW_CHOICES, FEW_PROMPTS, FEW_TOKENS, FEW_NEW_TOKENS = 16, 8, 16, 128


def padded(count: int, least: int = 1) -> int:
    """Returns the smallest power of two that is at least `count` and `least`.

    Args:
      count: the number of things that the size holds, 0 or more.
      least: a number that is held in any case, at least 1.
    """
    return 1 << (max(count, least) - 1).bit_length()


def closely_padded(count: int, least: int = 1) -> int:
    """Returns the smallest power of two, or 3/4 of one, that `padded` would allow.

    It has more sizes than `padded`, for what takes longer to compute than to compile.

    Args:
      count: see `padded`.
      least: see `padded`.
    """
    size = padded(count, least)
    smaller = size * 3 // 4
    return smaller if smaller >= max(count, least) else size
