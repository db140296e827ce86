"""Texts that are written together are those that `Steerer.write` writes alone."""

import queue
import threading
import time

import numpy as np
import policies
import pytest
from compiling import compilations

from fsa.language import row_batch
from fsa.serving import batching
from fsa.serving.batching import Batcher, Busy, Job

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPTS = ["review the novel :", "assess the park :", "judge the farm :"]


@pytest.fixture(scope="module")
def steerer(language_folder):
    return policies.make_steerer(language_folder)


@pytest.fixture
def batcher(steerer):
    made = Batcher(steerer, rows=4, waiting=20)
    yield made
    made.close()


def ask(batcher, steerer, prompt, z, **options):
    """Submits a text; returns a function that waits for its tokens and its end."""
    pieces = queue.Queue()
    (tokens,) = steerer.language.prompts([prompt])
    given = dict(max_new_tokens=9, temperature=1.0, top_p=1.0, seed=0) | options
    job = Job(tokens, z, emit=lambda *piece: pieces.put(piece), **given)
    batcher.submit(job)

    def wait():
        found, end = [], None
        while end is None:
            new, end = pieces.get(timeout=120)
            found += new
        return steerer.language.tokenization.text(tokens, found), end

    return job, wait


def alone(steerer, prompt, z, **options):
    given = dict(max_new_tokens=9, temperature=1.0, seed=0) | options
    return steerer.write([prompt], z[None], **given).texts[0]


def test_texts_of_a_batch_are_those_written_alone(batcher, steerer):
    """More texts than rows, of several people, lengths, temperatures and seeds."""
    latents = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    asked = [
        (
            PROMPTS[i % 3],
            z,
            dict(
                seed=i,
                max_new_tokens=1 + 5 * i % 23,
                temperature=(0.0, 1.0, 0.7)[i % 3],
                **({"top_p": 0.8} if i % 4 == 1 else {}),
            ),
        )
        for i, z in enumerate(latents)
    ]
    waits = [ask(batcher, steerer, p, z, **more)[1] for p, z, more in asked]
    found = [wait()[0] for wait in waits]
    assert found == [alone(steerer, p, z, **more) for p, z, more in asked]
    assert len(set(found)) > 6


@pytest.mark.slow
def test_a_long_text_goes_on_while_short_ones_come_and_go(batcher, steerer):
    """The index of the cache comes to its end several times, and tokens are moved."""
    z = np.float32([[1, -1, 0.5], [-1, 2, 0]])
    _, long = ask(batcher, steerer, PROMPTS[0], z[0], max_new_tokens=120, seed=3)
    for seed in range(6):
        _, short = ask(batcher, steerer, PROMPTS[1], z[1], seed=seed)
        assert short()[0] == alone(steerer, PROMPTS[1], z[1], seed=seed)
    text, _ = long()
    assert text == alone(steerer, PROMPTS[0], z[0], max_new_tokens=120, seed=3)


def test_how_texts_end(batcher, steerer):
    z = np.float32([0.3, -0.2, 1])
    _, one = ask(batcher, steerer, PROMPTS[0], z, max_new_tokens=1, temperature=0)
    text, end = one()
    assert end == row_batch.LENGTH and len(text.split()) == 1
    stops = set()
    for seed in range(12):
        _, wait = ask(batcher, steerer, PROMPTS[0], z, max_new_tokens=100, seed=seed)
        stops.add(wait()[1])
    assert row_batch.STOP in stops


def test_a_cancelled_text_frees_its_row(batcher, steerer):
    z = np.zeros(3, np.float32)
    jobs = [
        ask(batcher, steerer, PROMPTS[0], z, max_new_tokens=120, seed=i)[0]
        for i in range(8)
    ]
    for job in jobs:
        job.cancelled = True
    _, wait = ask(batcher, steerer, PROMPTS[1], z)
    assert wait()[0] == alone(steerer, PROMPTS[1], z)


@pytest.mark.slow
def test_a_cancelled_text_gets_no_more_tokens(batcher, steerer):
    """It leaves the batch before the next tokens, whoever else is written for."""
    z, found = np.zeros(3, np.float32), []
    (tokens,) = steerer.language.prompts([PROMPTS[0]])
    _, other = ask(batcher, steerer, PROMPTS[1], z, max_new_tokens=60, temperature=1.3)

    def emit(new, end):
        found.append(new)
        job.cancelled = len(found) == 2

    job = Job(tokens, z, 120, 0.0, 1.0, 0, emit)
    batcher.submit(job)
    other()
    _, last = ask(batcher, steerer, PROMPTS[0], z, max_new_tokens=60)
    last()
    assert len(found) == 2


def test_cancelled_texts_keep_nobody_waiting(steerer):
    batcher = Batcher(steerer, rows=1, waiting=2)
    z, free = np.zeros(3, np.float32), threading.Event()
    (tokens,) = steerer.language.prompts([PROMPTS[0]])
    options = 9, 0.0, 1.0, 0
    batcher.submit(Job(tokens, z, *options, lambda *_: free.wait()))
    while batcher._queue:
        time.sleep(0.01)
    waiting = [Job(tokens, z, *options, lambda *_: None) for _ in range(2)]
    for job in waiting:
        batcher.submit(job)
    with pytest.raises(Busy):
        batcher.submit(waiting[0])
    for job in waiting:
        job.cancelled = True
    _, wait = ask(batcher, steerer, PROMPTS[1], z)
    free.set()
    assert wait()[0] == alone(steerer, PROMPTS[1], z)
    batcher.close()


@pytest.mark.slow
def test_no_more_wait_than_may(steerer):
    batcher = Batcher(steerer, rows=1, waiting=2)
    z = np.zeros(3, np.float32)
    waits = []
    with pytest.raises(Busy):
        for _ in range(9):
            _, wait = ask(batcher, steerer, PROMPTS[0], z, max_new_tokens=120)
            waits.append(wait)
    batcher.close()
    assert len({wait()[0] for wait in waits}) == 1


def test_a_broken_text_ends_alone(batcher, steerer):
    _, broken = ask(batcher, steerer, PROMPTS[0], np.zeros(7, np.float32))
    assert broken() == ("", batching.BROKEN)
    z = np.zeros(3, np.float32)
    _, wait = ask(batcher, steerer, PROMPTS[1], z)
    assert wait()[0] == alone(steerer, PROMPTS[1], z)


@pytest.mark.slow
def test_nothing_is_compiled_after_warming_up(steerer):
    """For short prompts and texts, in all numbers of rows."""
    batcher = Batcher(steerer, rows=4)
    batcher.warm_up()
    z = np.zeros(3, np.float32)
    with compilations() as found:
        waits = [ask(batcher, steerer, PROMPTS[0], z, seed=i)[1] for i in range(6)]
        assert len([wait() for wait in waits]) == 6
    batcher.close()
    assert found == []
