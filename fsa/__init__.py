"""Few-shot steerable alignment in JAX.

Names are imported when they are first used, so that `import fsa` takes no time:

* `fit(config, workdir)` trains a run and returns its `Ranker` or `Steerer`;
* `evaluate(workdir)` scores it on people that it was not trained on;
* `presets` has configs to start from;
* `Ranker` ranks options for a person by a reward model;
* `Steerer` writes texts for a person by a policy;
* `Reader` says how `fit` reads rows, and `InputError` is what a wrong input raises;
* `conditioning` modulates parameters of any JAX model by a latent;
* `losses`, `latent` and `episodes` are pure functions.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsa import conditioning, episodes, latent, losses, presets
    from fsa.data.tables import Reader
    from fsa.errors import InputError
    from fsa.inference.ranker import Ranker
    from fsa.inference.steerer import Steerer
    from fsa.recipes.evaluate import evaluate
    from fsa.recipes.fit import fit

__version__ = "0.1.0"

# Modules that are attributes of the package, and names that modules define.
_MODULES = {
    "conditioning": "fsa.conditioning",
    "episodes": "fsa.episodes",
    "latent": "fsa.latent",
    "losses": "fsa.losses",
    "presets": "fsa.presets",
}
_DEFINED_IN = {
    "InputError": "fsa.errors",
    "Ranker": "fsa.inference.ranker",
    "Reader": "fsa.data.tables",
    "Steerer": "fsa.inference.steerer",
    "evaluate": "fsa.recipes.evaluate",
    "fit": "fsa.recipes.fit",
}

__all__ = [
    "InputError",
    "Ranker",
    "Reader",
    "Steerer",
    "__version__",
    "conditioning",
    "episodes",
    "evaluate",
    "fit",
    "latent",
    "losses",
    "presets",
]


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__`, see PEP 562."""
    if name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    elif name in _DEFINED_IN:
        value = getattr(importlib.import_module(_DEFINED_IN[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
