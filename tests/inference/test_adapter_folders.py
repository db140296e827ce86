"""LoRA adapters of a policy: they are the policy at z, for one person and for many."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import policies
import pytest

from fsa.conditioning import adapters, condition, fold
from fsa.data.sources import corpus
from fsa.errors import InputError
from fsa.inference.adapter_folders import NOBODY, folder_name, write_adapters
from fsa.language.huggingface import peft, weights
from fsa.models.policy import spec_of

pytestmark = pytest.mark.usefixtures("quick_compile")

# Of every layout of a map: heads as outputs, heads as inputs, plain.
LOW_RANKS = (
    ("attention/query", "low_rank(2)"),
    ("attention/out", "low_rank(2) + lora(1)"),
    ("mlp/down", "low_rank(3, factors='generated')"),
)
Z = np.random.default_rng(0).normal(0, 1.5, (3, policies.REWARD["latent_dim"]))
PROMPT = "review the novel :"
ANSWERS = [a for _, a in corpus.texts(1, 60) if len(a.split()) < 10][:6]
CHOICES = [(PROMPT, *ANSWERS[2 * i : 2 * i + 2]) for i in range(3)]


@pytest.fixture(scope="module")
def steerer(language_folder):
    return policies.make_steerer(language_folder, LOW_RANKS)


def updates(variables, base):
    """The difference of some variables to the language model's, by path."""
    flat = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda w, b: np.float64(w) - np.float64(b), variables, base)
    )
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flat}


def with_adapter(steerer, folder):
    """The language model's variables with the adapter of a folder."""
    language = steerer.language
    read = peft.load(folder, weights.parameters_of(language.model))
    spec = spec_of(steerer.policy.modulations)
    modulations = adapters.from_lora(spec, language.variables, read)
    return fold(condition(language.variables, modulations))


def test_the_language_model_with_an_adapter_is_the_policy(steerer, tmp_path):
    steerer.save_adapter(Z[0], tmp_path / "a")
    found = with_adapter(steerer, tmp_path / "a")
    expected = policies.folded(steerer, Z[0])
    base = steerer.language.variables
    changed = 0
    for path, update in updates(expected, base).items():
        np.testing.assert_allclose(updates(found, base)[path], update, atol=2e-6)
        changed += bool(np.abs(update).max() > 1e-3)
    assert changed == len(LOW_RANKS)
    assert json.loads((tmp_path / "a" / "fsa.json").read_text())["z"] == Z[0].tolist()


def test_adapters_of_many_people(steerer, tmp_path):
    people = {"ann": CHOICES, "../bob": CHOICES[1:], "no choice": []}
    written, kept, _ = write_adapters(steerer, people, tmp_path / "all")
    assert {path.parent for path in written} == {tmp_path / "all"} and not kept
    for name, choices in {**people, NOBODY: []}.items():
        folder = tmp_path / "all" / folder_name(name)
        z = steerer.latent(choices)
        known = json.loads((folder / "fsa.json").read_text())
        np.testing.assert_allclose(known["z"], z, atol=1e-5)
        steerer.save_adapter(z, tmp_path / "one" / folder_name(name))
        one, all_ = (
            with_adapter(steerer, tmp_path / where / folder_name(name))
            for where in ("one", "all")
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, all_
        )
    # A call that was stopped is repeated: what is there is kept.
    shutil.rmtree(written[0])
    again, kept, _ = write_adapters(steerer, people, tmp_path / "all")
    assert again == written[:1] and kept == written[1:]


def test_an_adapter_of_other_choices_is_not_kept(steerer, tmp_path):
    """Nor of another training: what engines serve would be wrong."""
    write_adapters(steerer, {"ann": CHOICES}, tmp_path)
    with pytest.raises(InputError, match="ann"):
        write_adapters(steerer, {"ann": CHOICES[1:]}, tmp_path)
    other = dataclasses.replace(steerer, origin={"checkpoint": "another"})
    with pytest.raises(InputError, match=NOBODY):
        write_adapters(other, {"ann": CHOICES}, tmp_path)
    (tmp_path / "ann" / "fsa.json").unlink()
    with pytest.raises(InputError, match="ann"):
        write_adapters(steerer, {"ann": CHOICES}, tmp_path)


def test_the_nearest_adapter_of_a_scale(language_folder, tmp_path):
    """Its rank is that of the map; what a smaller rank leaves out is stated."""
    scaled = (("attention/out", "low_rank(2)"), ("mlp/down", "scale"))
    steerer = policies.make_steerer(language_folder, scaled)
    base = steerer.language.variables
    expected = updates(policies.folded(steerer, Z[0]), base)
    found = {}
    for rank in (policies.SIZES["width"], 3):
        error = steerer.save_adapter(Z[0], tmp_path / str(rank), rank)
        found[rank] = error, updates(with_adapter(steerer, tmp_path / str(rank)), base)
    error, exact = found[policies.SIZES["width"]]
    assert error < 1e-5
    for path, update in expected.items():
        np.testing.assert_allclose(exact[path], update, atol=2e-6)
    error, near = found[3]
    left = {
        path: np.linalg.norm(near[path] - x) / np.linalg.norm(x)
        for path, x in expected.items()
        if np.linalg.norm(x) > 1e-3
    }
    assert len(left) == 2 and error > 0.1
    np.testing.assert_allclose(error, max(left.values()), rtol=1e-4)
    # An exact adapter, or one of another rank, would be another one.
    write_adapters(steerer, {}, tmp_path / "all", rank=3)
    with pytest.raises(InputError, match=NOBODY):
        write_adapters(steerer, {}, tmp_path / "all", rank=4)
    assert write_adapters(steerer, {}, tmp_path / "all", rank=3)[1]


def test_a_shift_has_no_nearest_adapter(language_folder, tmp_path):
    steerer = policies.make_steerer(language_folder, (("mlp/down", "scale + shift"),))
    with pytest.raises(InputError, match="mlp/down/bias.*`export`"):
        steerer.save_adapter(Z[0], tmp_path / "a", 4)


@pytest.mark.parametrize("latent", ["group", "none"])
def test_z_of_many_people_needs_a_policy_that_infers_it(language_folder, latent):
    steerer = policies.make_steerer(language_folder, LOW_RANKS, latent=latent)
    with pytest.raises(InputError, match="policy.latent"):
        steerer.latents_of([CHOICES])


def test_a_person_cannot_be_named_as_nobody_is(steerer, tmp_path):
    with pytest.raises(InputError, match=NOBODY):
        write_adapters(steerer, {NOBODY: CHOICES}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("modulations", "options", "named"),
    [
        (policies.MODULATIONS, {}, "mlp/down"),
        ((("mlp/down", "shift"),), {}, "mlp/down/bias"),
        (LOW_RANKS, {"train_base": True}, "train_base"),
    ],
)
def test_what_is_no_adapter(language_folder, tmp_path, modulations, options, named):
    steerer = policies.make_steerer(language_folder, modulations, **options)
    with pytest.raises(InputError, match=named):
        steerer.save_adapter(Z[0], tmp_path / "a")
    assert not (tmp_path / "a").exists()
