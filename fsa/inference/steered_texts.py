"""Texts of a policy at several z beside those of its language model.

Shapes: D latent dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fsa.conditioning import interpolate
from fsa.inference.steerer import Steerer

_UNSTEERED = "language model"


def points_between(
    first: np.ndarray, second: np.ndarray, num_points: int
) -> dict[str, np.ndarray]:
    """Returns evenly spaced points from one person's z to another's, ends included.

    Args:
      first: `[D]`.
      second: `[D]`.
      num_points: the number of points, 2 to 101.

    Returns:
      Position -> z `[D]`; positions are written with two digits, from "0.00" for
      `first` to "1.00" for `second`.
    """
    t = np.linspace(0, 1, num_points)
    between = np.asarray(interpolate(first, second, t))
    return {f"{x:.2f}": z for x, z in zip(t, between, strict=True)}


def write_side_by_side(
    steerer: Steerer,
    prompts: Sequence[str],
    latents: Mapping[str, np.ndarray],
    **options: Any,
) -> list[dict[str, Any]]:
    """Writes a response to each prompt by the language model and at each z.

    Args:
      steerer: the policy.
      prompts: texts, or messages as JSON.
      latents: name -> z `[D]`.
      **options: options of `LanguageModel.write`, such as `max_new_tokens`.

    Returns:
      A row for each prompt: `prompt`, and `texts`, which maps "language model" and each
      name to a response.

    Raises:
      InputError: if a prompt is empty or too long.
    """
    # All calls use the same example ids, so that texts differ by the latent alone.
    columns = {_UNSTEERED: steerer.write(prompts, None, **options).texts}
    for name, z in latents.items():
        repeated = np.repeat(z[None], len(prompts), axis=0)
        columns[name] = steerer.write(prompts, repeated, **options).texts
    return [
        {"prompt": prompt, "texts": dict(zip(columns, texts, strict=True))}
        for prompt, *texts in zip(prompts, *columns.values(), strict=True)
    ]


def side_by_side(prompt: str, texts: Mapping[str, str]) -> str:
    """Formats a prompt and several responses to it for a terminal."""
    width = max(map(len, texts))
    lines = [f"> {prompt}"]
    for name, text in texts.items():
        first, *others = text.splitlines() or [""]
        lines.append(f"  {name.ljust(width)}  {first}")
        lines += [f"  {'':{width}}  {line}" for line in others]
    return "\n".join(lines)
