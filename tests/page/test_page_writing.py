"""Texts for a person, for the opposite, for nobody and for somebody else."""

import numpy as np
import pytest
import serving_pages
from fastapi.testclient import TestClient

from fsa.serving.page.opposite import between

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPT = "review the novel :"


@pytest.fixture(scope="module")
def policy(language_folder):
    return serving_pages.of_policy(language_folder)


@pytest.fixture
def client(policy, tmp_path):
    app = serving_pages.application(policy[1], tmp_path)
    with TestClient(app, base_url="http://127.0.0.1:8000") as found:
        found.post(
            "/page/people/me/answers", json={"kind": "chosen", "options": [0, 1]}
        )
        yield found


def write(client, **body):
    return client.post("/page/people/me/write", json={"prompt": PROMPT, **body})


def test_a_text_is_written_at_the_z_that_is_asked_for(client, policy):
    steerer, page = policy
    answers = [{k: v for k, v in row.items() if k != "id"} for row in kept(client)]
    z, prior = page.model.latent(answers).mean, page.model.posterior([])
    other = [0.5, -1.0, 0.25]
    wanted = {
        "nobody": ({"at": None}, prior.mean),
        "you": ({"at": 0}, z),
        "between": ({"at": 0.25}, between(z, prior, 0.25)),
        "opposite": ({"at": 1}, between(z, prior, 1)),
        "other": ({"z": other}, other),
    }
    options = dict(max_new_tokens=200, temperature=0.7, seed=0)
    latents = np.array([at for _, at in wanted.values()], np.float32)
    texts = [steerer.write([PROMPT], at[None], **options).texts[0] for at in latents]
    found = [write(client, **body).text for body, _ in wanted.values()]
    assert found == texts
    assert len(set(texts)) > 1


def kept(client):
    return client.get("/v1/people/me/answers").json()["answers"]


@pytest.mark.parametrize(
    "body",
    [{"prompt": ""}, {"prompt": " "}, {"at": 1.5}, {"z": [1.0]}, {"z": ["x", 0, 0]}],
)
def test_what_cannot_be_written_is_refused_in_one_line(client, body):
    response = write(client, **body)
    assert 400 <= response.status_code < 500
    assert "\n" not in response.json()["error"]["message"]


def test_a_policy_takes_choices_alone(client, policy):
    session = client.get("/page/session").json()
    assert session["policy"] and session["takes"] == {"tie": False, "vote": False}
    assert session["map"]["people"] == []
    view = client.post("/page/people/me/view", json={}).json()
    prompts = {policy[1].options[i][0] for i in view["question"]}
    assert len(prompts) == 1
