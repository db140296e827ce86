"""Scores of responses by a frozen model: stored once, and never wrong ones."""

import dataclasses

import numpy as np
import pytest

from fsa.data import collect, dataset, scored_responses
from fsa.data.sources import corpus
from fsa.data.tables import Choice
from fsa.errors import InputError
from fsa.language.token_table import TokenTable
from fsa.language.tokenization import Tokenization

transformers = pytest.importorskip("transformers")

PROMPT = "review the farm :"
LONG = "assess the engine : it looks great . " * 2


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    corpus.write_tokenizer(folder)
    (folder / "weights").write_bytes(b"some")
    return folder


@pytest.fixture
def tokenization(model_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    return Tokenization(tokenizer, separator=" ", max_prompt=8)


@pytest.fixture
def data(tmp_path):
    rows = [
        Choice("a", PROMPT, "it looks great .", "it looks poor .", "train"),
        Choice("a", "judge the park :", "that feels dull !", " ", "train", "", "", "x"),
        Choice("b", LONG, "it looks great .", "it looks poor .", "valid"),
        Choice("c", PROMPT, "it looks poor .", "it looks great .", "test"),
    ]
    found = collect.collect(rows, [])
    dataset.write(tmp_path / "data", found)
    return found


class Scorer:
    """Counts its calls; a response's score is the sum of its tokens."""

    def __init__(self, broken=None):
        self.calls, self._broken, self.kept = 0, broken, None

    def __call__(self, table: TokenTable, kept):
        self.calls, self.kept = self.calls + 1, kept
        kept.mkdir()
        (kept / "some.npz").write_bytes(b"some")
        sums = [table[i][table.start[i] :].sum() for i in range(len(table.start))]
        log_prob = -np.array(sums, np.float32)
        if self._broken is not None:
            log_prob[self._broken] = np.nan
        return log_prob, np.stack([log_prob, log_prob + 1], axis=1)


def obtain(tmp_path, data, tokenization, score, model="m", **options):
    return scored_responses.obtain(
        tmp_path / "data",
        data,
        tokenization,
        score,
        model_digest=model,
        options=options,
    )


def test_items_are_tokenised_and_those_that_cannot_be_are_counted(
    tmp_path, data, tokenization
):
    found = obtain(tmp_path, data, tokenization, Scorer())
    by_text = {
        (data.prompts[p], text): i
        for i, (p, text) in enumerate(zip(data.item_prompt, data.texts, strict=True))
    }
    item = by_text[PROMPT, "it looks great ."]
    words = [corpus.WORDS[token] for token in found.tokens[item]]
    assert words == ["<bos>", *PROMPT.split(), *"it looks great . <eos>".split()]
    assert words[found.tokens.start[item] :][0] == "it"
    assert found.left_out == {
        "empty response": 1,
        "prompt of more than max_prompt=8 tokens": 2,
    }
    assert found.usable.sum() == 3
    assert found.log_prob[item] == -sum(found.tokens[item][5:])
    np.testing.assert_array_equal(found.features[item], found.log_prob[item] + [0, 1])


def test_computed_once_and_again_where_anything_changes(tmp_path, data, tokenization):
    score = Scorer()
    first = obtain(tmp_path, data, tokenization, score)
    again = obtain(tmp_path, data, tokenization, score)
    assert score.calls == 1
    np.testing.assert_array_equal(first.tokens.flat, again.tokens.flat)
    np.testing.assert_array_equal(first.log_prob, again.log_prob)
    changed = [
        lambda: obtain(tmp_path, data, tokenization, score, model="other"),
        lambda: obtain(
            tmp_path, data, dataclasses.replace(tokenization, end=False), score
        ),
        lambda: obtain(tmp_path, data, tokenization, score, pooling="last"),
    ]
    keys = {first.key}
    for calls, change in enumerate(changed, start=2):
        keys.add(change().key)
        assert score.calls == calls
    dataset.write(tmp_path / "data", data, sources={"x": "y"}, overwrite=True)
    obtain(tmp_path, data, tokenization, score)
    assert score.calls == 5  # The data were replaced together with the scores.
    assert len(keys) == 4


def test_a_part_goes_with_the_data_and_once_all_is_there(tmp_path, data, tokenization):
    score, folder = Scorer(), tmp_path / "data"
    obtain(tmp_path, data, tokenization, score)
    assert score.kept.parent == folder and not score.kept.exists()
    # That of a scoring that was interrupted is no reason to refuse to replace the data.
    score.kept.mkdir()
    (score.kept / "some.npz").write_bytes(b"some")
    dataset.write(folder, data, sources={"x": "y"}, overwrite=True)
    assert not score.kept.exists()


def test_a_damaged_cache_is_computed_again(tmp_path, data, tokenization):
    score = Scorer()
    found = obtain(tmp_path, data, tokenization, score)
    file = tmp_path / "data" / f"responses-{found.key}" / "log_prob.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = obtain(tmp_path, data, tokenization, score)
    assert score.calls == 2
    np.testing.assert_array_equal(again.log_prob, found.log_prob)


def test_what_another_process_lacks_is_computed_by_all(
    tmp_path, data, tokenization, monkeypatch
):
    """On a disk of its own; what is here already stays."""
    score = Scorer()
    found = obtain(tmp_path, data, tokenization, score)
    file = tmp_path / "data" / f"responses-{found.key}" / "log_prob.npy"
    written = file.stat().st_mtime_ns
    monkeypatch.setattr(scored_responses, "ask_largest", lambda lacks: lambda: 1)
    obtain(tmp_path, data, tokenization, score)
    assert score.calls == 2
    assert file.stat().st_mtime_ns == written


def test_scores_that_are_not_finite_are_refused(tmp_path, data, tokenization):
    with pytest.raises(InputError, match="1 responses .*item"):
        obtain(
            tmp_path,
            data,
            tokenization,
            Scorer(
                broken=int(
                    np.argmax([text == "it looks great ." for text in data.texts])
                )
            ),
        )
    assert not list((tmp_path / "data").glob("responses-*"))


def test_nothing_left_is_refused(tmp_path, data, tokenization):
    with pytest.raises(InputError, match="none of 6 responses can be used"):
        obtain(
            tmp_path, data, dataclasses.replace(tokenization, max_prompt=2), Scorer()
        )


def test_padding_keeps_tokens_and_says_where_they_are():
    table = TokenTable.of([([5, 6, 7], 1), ([], 0), ([8, 9, 3, 4], 3)])
    padded = table.pad(np.array([[2, -1], [0, 1]]), 5)
    np.testing.assert_array_equal(
        padded.tokens,
        [[[8, 9, 3, 4, 0], [0] * 5], [[5, 6, 7, 0, 0], [0] * 5]],
    )
    np.testing.assert_array_equal(padded.start, [[3, 0], [1, 0]])
    np.testing.assert_array_equal(padded.stop, [[4, 0], [3, 0]])
