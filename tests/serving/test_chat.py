"""A policy chats as people, in the form that OpenAI's clients read."""

import concurrent.futures
import contextlib
import io
import json
import socket
import threading
import time
import zipfile

import httpx2
import numpy as np
import policies
import pytest
import served
from served import ADMIN_TOKEN, line_of, ok

from fsa.errors import InputError
from fsa.serving import batching
from fsa.serving.chat import OwnWriter
from fsa.serving.engine import EngineWriter
from fsa.serving.metrics import Metrics
from fsa.serving.page import writing
from fsa.serving.person_model import PersonModel

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPT = "review the novel :"
CHAT = "/v1/chat/completions"
# A policy that has adapters.
LOW_RANKS = (("attention/out", "low_rank(2)"), ("mlp/down", "low_rank(3)"))


@pytest.fixture(scope="module")
def steerer(language_folder):
    return policies.make_steerer(language_folder, LOW_RANKS)


@pytest.fixture(scope="module")
def people(steerer):
    """Answers of people who chose the opposite."""
    texts = [text for _, text in policies.corpus.texts(1, 40) if len(text.split()) < 9]
    prompts = ["describe the farm :", "judge the park :", "assess the novel :"]
    pairs = list(zip(prompts, texts[:3], texts[3:6], strict=True))
    return {
        "ann": [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in pairs],
        "bob": [{"prompt": p, "chosen": b, "rejected": a} for p, a, b in pairs],
        "cid": [],
    }


@pytest.fixture
def service(steerer, people, tmp_path):
    model = PersonModel.of_policy(steerer, deterministic=False)
    made = served.make_service(tmp_path, model, new_tokens=60)
    for name, answers in people.items():
        made.store.add(name, f"token-of-{name}")
        for answer in answers:
            made.add_answer(name, answer)
    return made


@pytest.fixture
def writer(service):
    made = OwnWriter(service, Metrics(), rows=4)
    yield made
    made.close()


@pytest.fixture
def client(service, writer):
    with served.client_of(service, writer=writer) as opened:
        yield opened


@pytest.fixture(scope="module")
def long(steerer, people):
    """A seed with which ann's text has some words."""
    return next(
        seed
        for seed in range(30)
        if len(expected(steerer, people["ann"], seed=seed, max_new_tokens=50)) > 99
    )


def body(name, **more):
    message = {"role": "user", "content": PROMPT}
    return {"model": name, "messages": [message], "max_tokens": 9} | more


def z_of(steerer, answers):
    return steerer.latent([(a["prompt"], a["chosen"], a["rejected"]) for a in answers])


def expected(steerer, answers, **options):
    given = dict(max_new_tokens=9, temperature=1.0, seed=0) | options
    return steerer.write([PROMPT], z_of(steerer, answers)[None], **given).texts[0]


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def streamed(found):
    return "".join(e["choices"][0]["delta"].get("content", "") for e in found)


@pytest.mark.slow
def test_a_person_gets_the_text_at_their_z(client, steerer, people):
    for name, answers in {**people, "nobody": []}.items():
        for seed, heat in ((3, 1.0), (4, 0.0)):
            wanted = body(name, seed=seed, temperature=heat)
            found = ok(client.post(CHAT, json=wanted))
            text = expected(steerer, answers, seed=seed, temperature=heat)
            (choice,) = found["choices"]
            assert choice["message"]["content"] == text
            assert choice["finish_reason"] in ("stop", "length")
            assert (found["object"], found["model"]) == ("chat.completion", name)
            usage = found["usage"]
            assert usage["prompt_tokens"] == 5
            assert usage["completion_tokens"] <= 9
            assert usage["total_tokens"] == 5 + usage["completion_tokens"]


def test_a_streamed_text_is_the_same(client, long):
    wanted = body("ann", seed=long, max_tokens=50)
    whole = ok(client.post(CHAT, json=wanted))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *found, last = events(client.post(CHAT, json=wanted | options))
    assert streamed(found) == whole["choices"][0]["message"]["content"]
    assert {event["id"] for event in [*found, last]} == {last["id"]}
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    ends = [event["choices"][0]["finish_reason"] for event in found]
    assert ends == [None] * (len(found) - 1) + [whole["choices"][0]["finish_reason"]]
    assert last["usage"] == whole["usage"] and last["choices"] == []
    assert len(found) > 4


@pytest.mark.slow
def test_people_at_once_get_their_own_texts(client, steerer, people):
    """Twelve texts in batches of four, half of them streamed."""
    asked = [(name, seed) for seed in range(4) for name in people]

    def ask(job):
        (name, seed), stream = job, job[1] % 2 == 1
        wanted = body(name, seed=seed, stream=stream, max_tokens=9 + 7 * seed)
        response = client.post(CHAT, json=wanted)
        if stream:
            return streamed(events(response))
        return ok(response)["choices"][0]["message"]["content"]

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, asked))
    assert found == [
        expected(steerer, people[name], seed=seed, max_new_tokens=9 + 7 * seed)
        for name, seed in asked
    ]
    assert len(set(found)) > 5


def test_a_new_answer_shows_at_once(client, steerer, people):
    for answer in people["ann"]:
        ok(client.post("/v1/people/cid/answers", json=answer))
        found = ok(client.post(CHAT, json=body("cid", seed=1)))
    text = found["choices"][0]["message"]["content"]
    assert text == expected(steerer, people["ann"], seed=1)
    z = ok(client.get("/v1/people/cid"))["z"]
    np.testing.assert_allclose(z, z_of(steerer, people["ann"]), atol=1e-5)


@pytest.mark.slow
def test_a_text_ends_before_a_stop(client, long):
    whole = ok(client.post(CHAT, json=body("ann", seed=long, max_tokens=50)))
    text = whole["choices"][0]["message"]["content"]
    word = text.split()[4]
    for stream in (False, True):
        stops = {"stop": [word, "none"], "stream": stream}
        wanted = body("ann", seed=long, max_tokens=50, **stops)
        response = client.post(CHAT, json=wanted)
        if stream:
            found = events(response)
            shown, end = streamed(found), found[-1]["choices"][0]["finish_reason"]
        else:
            (choice,) = ok(response)["choices"]
            shown, end = choice["message"]["content"], choice["finish_reason"]
        assert (shown, end) == (text[: text.find(word)], "stop")


def test_ranks_and_questions_are_of_the_reward_inside(client, steerer, people):
    texts = [people["ann"][0]["chosen"], people["ann"][1]["rejected"], "the novel ."]
    asked = {"options": texts, "prompt": PROMPT}
    found = {
        name: ok(client.post(f"/v1/people/{name}/rank", json=asked))["ranking"]
        for name in people
    }
    table = steerer.language.pairs([(PROMPT, text) for text in texts])
    z = np.stack([z_of(steerer, people[name]) for name in ("ann", "bob")])
    rewards = steerer.rewards(np.stack([steerer.features(table)] * 2), z)
    for name, own in zip(("ann", "bob"), rewards, strict=True):
        shares = {row["position"]: row["probability"] for row in found[name]}
        gap = np.ptp(own)
        assert gap > 0.01 and set(shares) == {0, 1, 2}
    assert found["ann"] != found["bob"]
    question = ok(client.post("/v1/people/ann/question", json=asked))["question"]
    assert 0 <= question["first"] < question["second"] < 3
    line = line_of(client.post("/v1/people/ann/rank", json={"options": texts}), 400)
    assert "prompt" in line


def test_answers_that_a_policy_cannot_use(client, people):
    answer = people["ann"][0]
    for wrong in (
        {"chosen": "a b", "rejected": "c"},
        {"liked": "calm"},
        answer | {"rejected": answer["chosen"]},
        answer | {"tie": True},
        answer | {"chosen": ""},
        answer | {"prompt": ""},
        answer | {"prompt": "word " * 50},
        answer | {"chosen": [1.0, 2.0]},
        answer | {"chosen": "words that no token stands for"},
    ):
        line_of(client.post("/v1/people/ann/answers", json=wrong), 400)


def test_the_adapter_is_that_of_the_persons_z(client, steerer, people):
    response = client.get("/v1/people/ann/adapter")
    assert response.headers["content-type"] == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(
        archive.namelist()
    )
    z = json.loads(archive.read("fsa.json"))["z"]
    np.testing.assert_allclose(z, z_of(steerer, people["ann"]), atol=1e-5)
    assert client.get("/v1/people/bob/adapter").content != response.content


def test_malformed_chats_get_one_line(client):
    user = {"role": "user", "content": PROMPT}
    wrong = [
        {"model": "eve"},
        {"model": ""},
        {"model": 7},
        {"model": None},
        {"messages": None},
        {"messages": []},
        {"messages": "hello"},
        {"messages": [user, user]},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": "word " * 50}]},
        {"messages": [{"role": "user", "content": "novel " * 50}]},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 61},
        {"max_tokens": "many"},
        {"max_tokens": 1.5},
        {"max_completion_tokens": 10**9},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"seed": 1e30},
        {"seed": "x"},
        {"stop": ["a"] * 5},
        {"stop": ""},
        {"stop": 7},
        {"n": 2},
        {"logprobs": True},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 1}},
        {"frequency_penalty": 1},
        {"stream": "perhaps"},
        {"stream_options": 7},
    ]
    for change in wrong:
        for stream in (False, True):
            wanted = body("ann") | {"stream": stream} | change
            response = client.post(CHAT, json=wanted)
            assert line_of(response, 400, 404), change
    harmless = dict(n=1, user="x", store=False, logprobs=None, tools=[], top_p=1)
    ok(client.post(CHAT, json=body("ann", **harmless)))


def test_a_token_writes_for_its_person_alone(service, writer):
    given = dict(loopback=False, writer=writer)
    with served.client_of(service, token="token-of-ann", **given) as ann:
        ok(ann.post(CHAT, json=body("ann")))
        for name in ("bob", "nobody", "eve"):
            line = line_of(ann.post(CHAT, json=body(name)), 404)
            assert line == f"no person {name!r}"
    with served.client_of(service, token=ADMIN_TOKEN, **given) as admin:
        ok(admin.post(CHAT, json=body("nobody")))


@pytest.mark.slow
def test_too_many_texts_at_once_are_asked_to_come_again(service, people):
    few = served.Limits(new_tokens=60, waiting=1)
    service.limits = few
    writer = OwnWriter(service, Metrics(), rows=1)
    with served.client_of(service, writer=writer) as client:

        def ask(seed):
            return client.post(CHAT, json=body("ann", seed=seed, max_tokens=60))

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            found = list(pool.map(ask, range(12)))
    writer.close()
    refused = [each for each in found if each.status_code == 429]
    assert refused and len(refused) < 12
    for each in refused:
        line_of(each, 429)
        assert int(each.headers["Retry-After"]) > 0
    for seed, each in enumerate(found):
        if each not in refused:
            text = ok(each)["choices"][0]["message"]["content"]
            own = dict(seed=seed, max_new_tokens=60)
            assert text == expected(service.model.steerer, people["ann"], **own)


def test_a_model_that_knows_few_words_is_warmed_up(service, monkeypatch):
    """For prompts of any length, if there is none that every model reads."""
    writer, lengths = OwnWriter(service, Metrics(), rows=1), []
    monkeypatch.setattr(writer._batcher, "warm_up", lengths.append)
    writer.warm_up()
    writer.close()
    with pytest.raises(InputError):
        service.model.steerer.language.prompts(["?"])
    assert lengths == [1]


def test_closing_waits_for_what_was_begun(service):
    writer = OwnWriter(service, Metrics(), rows=2)
    with served.client_of(service, writer=writer) as client:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            asked = pool.submit(client.post, CHAT, json=body("ann", max_tokens=60))
            while not writer._batcher._batch.taken and not asked.done():
                time.sleep(0.01)
            writer.close()
            assert ok(asked.result())["choices"][0]["finish_reason"] in (
                "stop",
                "length",
            )
        line_of(client.post(CHAT, json=body("ann")), 429)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("whole", marks=pytest.mark.slow),
        "streamed",
        pytest.param("waiting", marks=pytest.mark.slow),
        pytest.param("page", marks=pytest.mark.slow),
    ],
)
def test_a_text_ends_when_its_client_leaves(service, writer, long, kind):
    """Before the next tokens are written; each step of the batch waits for a permit."""
    batcher, permits, steps = writer._batcher, threading.Semaphore(0), []
    advance = batcher._programs.advance

    def slowly(variables, rows):
        permits.acquire()
        steps.append(len(rows.token))
        return advance(variables, rows)

    batcher._programs.advance = slowly
    try:
        leave(service, writer, long, kind)
        permits.release(2)
        eventually(lambda: not batcher._batch.taken and not batcher._queue)
        assert len(steps) <= 1
    finally:
        batcher._programs.advance = advance
        permits.release(100)


def leave(service, writer, long, kind):
    """Asks for a text, leaves when it is begun, and waits until it is cancelled."""
    batcher = writer._batcher
    path, sent = CHAT, body("ann", seed=long, max_tokens=50, temperature=1)
    if kind == "page":
        path, sent = "/page/people/ann/write", {"prompt": PROMPT, "at": 0}
    pages = [writing.make_router(service, writer)]
    with served.listening(service, writer=writer, pages=pages) as address:
        url = httpx2.URL(address)
        text = json.dumps(sent | {"stream": kind == "streamed"})
        with contextlib.ExitStack() as others:
            if kind == "waiting":
                # All rows are taken, before the first step waits for its permit.
                with batcher._changed:
                    for _ in range(4):
                        job = batching.Job([2, 3], np.zeros(3), 60, 0.0, 1.0, 0, print)
                        batcher.submit(job)
                        others.callback(setattr, job, "cancelled", True)
                eventually(lambda: not batcher._queue)
            with socket.create_connection((url.host, url.port)) as own:
                head = f"POST {path} HTTP/1.1\r\nHost: {url.host}\r\n"
                more = f"Content-Type: application/json\r\nContent-Length: {len(text)}"
                own.sendall(f"{head}{more}\r\n\r\n{text}".encode())
                if kind in ("streamed", "page"):
                    assert own.recv(1000).startswith(b"HTTP/1.1 200")
                eventually(lambda: begun(batcher))
                (job,) = begun(batcher)
            eventually(lambda: job.cancelled)


def begun(batcher):
    """Jobs of a request, which are those of ann's prompt, in rows or waiting."""
    jobs = [*filter(None, batcher._batch.texts), *batcher._queue]
    return [job for job in jobs if len(job.prompt) > 2]


def eventually(check):
    """Waits until `check()` is true."""
    end = time.monotonic() + 60
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_adapters_of_an_earlier_server_are_removed(service, people, tmp_path):
    """And no other folder, as somebody may keep more there."""
    folder, name = tmp_path / "adapters", next(iter(people))
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "adapter_config.json").write_text("{}")
    for _ in range(2):
        writer = EngineWriter(service, Metrics(), "http://127.0.0.1:1", str(folder))
        assert [path.name for path in folder.iterdir()] == ["mine"]
        writer._write(name, folder / "made-0123")
        assert (folder / "made-0123" / "adapter_config.json").exists()


def test_policies_without_z_are_refused(language_folder):
    steerer = policies.make_steerer(language_folder, latent="none")
    with pytest.raises(InputError, match="policy.latent"):
        PersonModel.of_policy(steerer, deterministic=False)
