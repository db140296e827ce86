"""The example that is installed with fsa: which cuisines a person likes.

1,276 people rated the food of 40 countries from 1 to 5 in a survey of FiveThirtyEight
(https://github.com/fivethirtyeight/data, CC BY 4.0). This trains the model of
`fsa ask --demo`, whose posterior of a person is Bayes', and packs the run:

    python -m experiments.cuisines --ratings=food_ratings.csv.gz --workdir=runs/cuisines

The file has a column `user` and one for each country, empty where the food is not
known. Names are the only features: each country has a vector of its own.
"""

import csv
import gzip
import json
import pathlib
import zipfile

import numpy as np
from absl import app, flags

import fsa
from fsa.recipes.presets import people

# Says where a part of a checkpoint was written.
_DONE = "commit_success.txt"

PROMPT = "Whose traditional cuisine do you like more?"

_RATINGS = flags.DEFINE_string("ratings", None, "Table of the survey.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory.", required=True)
_PLACE = flags.DEFINE_string("out", "fsa/examples/cuisines.zip", "The packed run.")


def make_config():
    """Returns the config of a small model that takes ratings and votes."""
    config = people("bayes")
    config.task.train_on = "ratings"
    config.model.context = "ratings"
    config.model.latent_dim = 6
    config.model.hidden = 64
    config.train.steps = 500
    config.train.validate_every = 100
    return config


def read_ratings(path: str) -> list[dict]:
    """Returns rows of user, prompt, item and value; people are numbered anew."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        people_rows = list(csv.DictReader(file))
    return [
        {"user": f"person {i}", "prompt": PROMPT, "item": name, "value": float(value)}
        for i, row in enumerate(people_rows)
        for name, value in row.items()
        if name != "user" and value
    ]


def pack(workdir: str, out: str) -> None:
    """Writes what the run needs to be used, its best checkpoint alone, as a zip file.

    Times are left out, and so are files that name a folder of this machine.
    """
    root = pathlib.Path(workdir)
    best = root / "checkpoints" / str(fsa.Ranker.load(workdir).origin["step"])
    kept = [root / name for name in ("config.json", "data.json", "data")] + [best]
    files = [f for each in kept for f in (each, *each.rglob("*")) if f.is_file()]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(files):
            if path.name == _DONE:
                continue
            info = zipfile.ZipInfo(str(path.relative_to(root)))
            info.compress_type = zipfile.ZIP_DEFLATED
            content = path.read_bytes()
            if path == best / "manifest.json":
                content = _without_done(content)
            archive.writestr(info, content)


def _without_done(manifest: bytes) -> bytes:
    """Returns the manifest of a checkpoint without the files that are left out."""
    found = json.loads(manifest)
    return json.dumps(
        {k: v for k, v in found.items() if pathlib.PurePath(k).name != _DONE}
    ).encode()


def main(argv):
    """Trains and packs the run."""
    del argv
    ratings = read_ratings(_RATINGS.value)
    names = sorted({row["item"] for row in ratings})
    vectors = dict(zip(names, np.eye(len(names)).tolist(), strict=True))
    fsa.fit(
        make_config(),
        _WORKDIR.value,
        ratings=ratings,
        embedder=lambda texts: [vectors[text] for text in texts],
    )
    pack(_WORKDIR.value, _PLACE.value)


if __name__ == "__main__":
    app.run(main)
