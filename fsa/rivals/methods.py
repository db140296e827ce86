"""All methods by name: what a reader adds a line to.

`make` builds those that a task can have, each with the same budget.
"""

from collections.abc import Callable, Collection
from typing import Any

from fsa.data.tasks.people import People
from fsa.models import linear_reward
from fsa.rivals.gpo import Gpo
from fsa.rivals.ideal_point import IdealPoint
from fsa.rivals.learned import Learned
from fsa.rivals.lore import Lore
from fsa.rivals.method import Method
from fsa.rivals.mrm import Mrm
from fsa.rivals.neighbours import Neighbours
from fsa.rivals.pal import Pal
from fsa.rivals.popularity import Popularity
from fsa.rivals.pref import Pref
from fsa.rivals.reward_model import RewardModelMethod
from fsa.rivals.spl import Spl
from fsa.rivals.test_time import TestTime

# The method that others are compared with.
OURS = "bayes"

_LEARNED: dict[str, Callable[..., Learned]] = {
    "lore": Lore,
    "pref": Pref,
    "pal": Pal,
    "mrm": Mrm,
    "test-time": TestTime,
    "gpo": Gpo,
    "spl": Spl,
}
# Ours, to which a choice is two votes: one for an option, one against the other.
VOTES = "bayes-votes"
_REWARD_MODELS = {
    name: {"preset": name}
    for name in ("btl", "dpl", "np-btl", "np-btl-elbo", "vpl", OURS)
} | {VOTES: {"preset": OURS, "context": linear_reward.VOTES}}
# Methods that know options by the items that they are.
BY_ITEMS = ("popularity", "neighbours", "ideal-point")

NAMES = (*BY_ITEMS, *_REWARD_MODELS, *_LEARNED)


def make(
    task: People, names: Collection[str] = NAMES, **budget: Any
) -> dict[str, Method]:
    """Builds methods; those that know options by items only if the task's recur.

    Args:
      task: the people.
      names: some of `NAMES`.
      **budget: fields of `fsa.rivals.learned.Learned`, the same for all.
    """
    found: dict[str, Method] = {}
    for name in names:
        if name in _LEARNED:
            found[name] = _LEARNED[name](**budget)
        elif name in _REWARD_MODELS:
            found[name] = RewardModelMethod(**_REWARD_MODELS[name], **budget)
        elif task.num_items:
            found[name] = {
                "popularity": Popularity,
                "neighbours": Neighbours,
                "ideal-point": lambda: IdealPoint(num_items=task.num_items, **budget),
            }[name]()
    return found
