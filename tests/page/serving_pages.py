"""Pages of several runs, and their servers, for tests."""

import numpy as np
import policies

import fsa
from experiments.synthetic import two_types
from fsa.data.sources import corpus
from fsa.serving.app import make_app
from fsa.serving.page import crowd
from fsa.serving.page.app import make_page_app, page_routes
from fsa.serving.page.page_model import PageModel
from fsa.serving.people import PeopleStore
from fsa.serving.person_model import PersonModel
from fsa.serving.security import Access
from fsa.serving.service import Limits, Service

PROMPT = "Which do you like more?"
HOSTILE = {
    "script": "<script>window.hacked = 1</script>",
    "image": "<img src=x onerror='window.hacked = 1'> [a](javascript:window.hacked=1)",
    "long": "x" * 100_000,
    "right to left": "\u202eshalom\u202c שלום עולם <b>مرحبا</b>",
}
OPTIONS = ["tea", "coffee", "cocoa", "cola", "=1+1", *HOSTILE.values()]
_TINY = {
    "task.train_on": "ratings",
    "task.min_choices": 2,
    "task.num_targets": 2,
    "task.max_context": 2,
    "model.context": "ratings",
    "model.hidden": 8,
    "model.latent_dim": 3,
    "model.num_steps": 4,
    "model.num_sweeps": 0,
    "train.steps": 2,
    "train.validate_every": 2,
    "train.batch_size": 4,
    "train.steps_per_call": 1,
    "eval.num_context": (0, 2),
    "eval.num_targets": 2,
    "eval.valid_episodes_per_user": 1,
}
_ADAPTED = (("attention/out", "low_rank(2)"), ("mlp/down", "low_rank(2)"))


def of_drinks(folder):
    """A page of a run that understands ratings, likes, ties and choices."""
    config = fsa.presets.people("bayes")
    config.update_from_flattened_dict(_TINY)
    vectors = np.random.default_rng(0).normal(size=(len(OPTIONS), 4)).tolist()
    known = dict(zip(OPTIONS, vectors, strict=True))
    fsa.fit(
        config,
        folder,
        ratings=list(_ratings()),
        embedder=lambda texts: [known[text] for text in texts],
    )
    model = PersonModel.load(folder)
    options = [(PROMPT, option) for option in OPTIONS]
    people = crowd.load(model, folder)
    return PageModel(model, options, people, title="drinks", attribution="Ours.")


def _ratings():
    """Ratings of people who like the first options, or the last ones."""
    for user in range(12):
        for i, option in enumerate(OPTIONS):
            value = float((i if user % 2 else len(OPTIONS) - i) % 5 + 1)
            split = ("train", "train", "valid", "test")[user % 4]
            yield dict(
                user=f"u{user}", split=split, prompt=PROMPT, item=option, value=value
            )


def of_types(folder, steps=1000):
    """A page of the demo's run on two types of people, trained for fewer steps."""
    config = two_types.get_config("bayes")
    config.train.steps = steps
    fsa.fit(config, folder)
    model = PersonModel.load(folder)
    options = np.random.default_rng(0).uniform(size=(40, 1)).round(3).tolist()
    return PageModel(model, options, crowd.load(model, folder), title="two types")


def of_policy(language_folder):
    """An untrained policy that writes a language of a hundred words, and its page."""
    steerer = policies.make_steerer(language_folder, _ADAPTED)
    model = PersonModel.of_policy(steerer, deterministic=False)
    texts = [text for _, text in corpus.texts(1, 100) if len(text.split()) < 12]
    prompts = corpus.prompts()[:2]
    options = [(prompts[i % 2], text) for i, text in enumerate(texts[:8])]
    return steerer, PageModel(model, options, crowd.load(model, ""), title="policy")


def application(page, folder):
    """The server of a page, whose people are kept in a folder."""
    return make_page_app(page, service_of(page, folder), person="me")[0]


def service_of(page, folder):
    """People who are kept in a folder, and the run of a page."""
    return Service(page.model, PeopleStore(folder / "people.sqlite"), Limits())


def guarded(page, folder, token):
    """The server of `fsa serve` with a page, which asks for a token."""
    service = service_of(page, folder)
    access = Access(service.store, token)
    pages = page_routes(page, service, access, None, person="me")
    return make_app(service, access, loopback=False, pages=pages)
