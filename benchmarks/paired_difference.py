"""Differences between predictions of the same people, as text."""

import numpy as np

from fsa.evaluation.verdict import gains


def paired(differences: np.ndarray, scale: float, digits: int) -> str:
    """Formats the mean over people of differences `[U, 1]` with its 95% interval."""
    (found,) = gains(scale * differences)
    mean, low, high = (f"{x:+.{digits}f}" for x in found)
    return f"{mean} [{low}, {high}]"
