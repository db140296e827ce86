"""A small artificial language with known attributes, to pretrain and steer models on.

A prompt asks for something about a topic; an answer is a list or prose of 1 to 4 units,
in a formal or casual register, with a positive or negative sentiment::

    prompt   = request "the" topic ":"
    answer   = list | sentence{1,4}
    list     = head item{1,4}
    item     = "-" [adverb] adjective aspect
    sentence = [opener ","] subject verb [adverb] adjective ["and" adjective] end

For every answer a rate of formality and one of sentiment are drawn from Beta(1/2, 1/2),
whose mass is near 0 and 1. The first is the probability that a head, opener, verb or
adverb is formal, the second that an adjective is positive. Nothing else depends on the
rates, and the answer does not depend on the prompt, so the distribution of texts is
known exactly.

Texts are words separated by single spaces; each word is a token.

Shapes: B sequences, T tokens.
"""

import json
import math
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from fsa.data.splits import SPLITS
from fsa.errors import InputError

PAD, BOS, EOS = range(3)
SPECIALS = ("<pad>", "<bos>", "<eos>")

REQUESTS = ("describe", "review", "judge", "discuss", "assess")
# fmt: off
TOPICS = (
    "bakery", "bicycle", "bridge", "cafe", "camera", "castle", "circus", "concert",
    "cottage", "dance", "engine", "exhibit", "farm", "festival", "film", "forest",
    "gallery", "game", "garden", "guitar", "harbour", "hotel", "island", "kitchen",
    "laptop", "library", "market", "museum", "novel", "opera", "park", "phone",
    "recipe", "river", "school", "stadium", "temple", "theatre", "train", "village",
)
# fmt: on

# In each pair the first words are casual (negative), the second formal (positive).
HEADS = ("rundown",), ("summary",)
OPENERS = ("honestly", "anyway", "well"), ("moreover", "furthermore", "indeed")
VERBS = ("looks", "feels", "sounds"), ("appears", "proves", "remains")
ADVERBS = ("super", "totally", "kinda"), ("exceedingly", "notably", "particularly")
# fmt: off
ADJECTIVES = (
    ("poor", "dull", "clumsy", "ugly", "awful", "bland", "weak", "shabby"),
    ("great", "lovely", "clever", "pretty", "superb", "charming", "strong", "pleasant"),
)
# fmt: on
SUBJECTS = ("it", "this", "that", "everything")
ASPECTS = ("design", "price", "quality", "service", "style", "value", "history", "mood")
ENDS = (".", "!")
BULLET = "-"

# Words of one kind are exchangeable in the grammar; each kind has a letter.
_KINDS = {
    "r": REQUESTS,
    "t": ("the",),
    "T": TOPICS,
    ":": (":",),
    "h": HEADS[0] + HEADS[1],
    "o": OPENERS[0] + OPENERS[1],
    "v": VERBS[0] + VERBS[1],
    "d": ADVERBS[0] + ADVERBS[1],
    "a": ADJECTIVES[0] + ADJECTIVES[1],
    "s": SUBJECTS,
    "n": ASPECTS,
    "e": ENDS,
    "-": (BULLET,),
    ",": (",",),
    "&": ("and",),
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words}
_ANSWER = re.compile(r"h(?:-d?an){1,4}|(?:(?:o,)?svd?a(?:&a)?e){1,4}")

WORDS = (*SPECIALS, *_KIND_OF)
IDS = {word: i for i, word in enumerate(WORDS)}

_CASUAL, _FORMAL = (
    frozenset(HEADS[side] + OPENERS[side] + VERBS[side] + ADVERBS[side])
    for side in range(2)
)
_NEGATIVE, _POSITIVE = map(frozenset, ADJECTIVES)

LIST_SHARE = 0.35
MAX_UNITS = 4
OPENER_SHARE, ADVERB_SHARE, SECOND_ADJECTIVE_SHARE = 0.3, 0.45, 0.25
# Most words of an answer (sentences with every optional word), and of a sequence.
MAX_ANSWER = MAX_UNITS * 9
PROMPT_LENGTH = 4
MAX_LENGTH = 1 + PROMPT_LENGTH + MAX_ANSWER + 1


def encode(text: str) -> list[int]:
    """Returns the ids of a text's words, without special tokens.

    Raises:
      InputError: the language does not have a word.
    """
    words = text.split()
    for word in words:
        if word not in IDS:
            raise InputError(f"the corpus has no word {word!r}; use `corpus.WORDS`")
    return [IDS[word] for word in words]


def decode(ids: Iterable[int]) -> str:
    """Returns the text of ids; special tokens are left out."""
    return " ".join(WORDS[i] for i in ids if i > EOS)


def prompts(topics: Sequence[str] = TOPICS) -> list[str]:
    """Returns all prompts about `topics`, topic by topic."""
    return [f"{request} the {topic} :" for topic in topics for request in REQUESTS]


def split_prompts(seed: int) -> dict[str, list[str]]:
    """Splits the prompts so that no topic is in two: 28, 4 and 8 topics of 40."""
    shuffled = np.random.default_rng(seed).permutation(len(TOPICS))
    parts = np.split(shuffled, [28, 32])
    return {
        split: prompts([TOPICS[t] for t in sorted(part)])
        for split, part in zip(SPLITS, parts, strict=True)
    }


def sequences(seed: int, size: int) -> np.ndarray:
    """Draws sequences <bos> prompt answer <eos>, padded, int32 `[B, T]`.

    T is `MAX_LENGTH`, so that no sequence is ever cut; few are nearly as long.

    Args:
      seed: of all draws.
      size: B.
    """
    rng = np.random.default_rng(seed)
    prompt = np.stack(
        [
            _any_of(rng, REQUESTS, (size,)),
            np.full(size, IDS["the"]),
            _any_of(rng, TOPICS, (size,)),
            np.full(size, IDS[":"]),
        ],
        axis=1,
    )
    formality, sentiment = rng.beta(0.5, 0.5, (2, size, 1))
    is_list = rng.random(size) < LIST_SHARE
    real = np.arange(MAX_UNITS) < rng.integers(1, MAX_UNITS + 1, (size, 1))
    head = _marked(rng, HEADS, formality, (size, 1))
    items = _items(rng, formality, sentiment, real & is_list[:, None])
    sentences = _sentences(rng, formality, sentiment, real & ~is_list[:, None])
    answer = [np.where(is_list[:, None], head, PAD), items, sentences]
    slots = np.concatenate([prompt, *answer, np.full((size, 1), EOS)], axis=1)
    # A stable sort moves the empty slots behind the others.
    order = np.argsort(slots == PAD, axis=1, kind="stable")
    packed = np.take_along_axis(slots, order, axis=1)[:, : MAX_LENGTH - 1]
    return np.pad(packed, ((0, 0), (1, 0)), constant_values=BOS).astype(np.int32)


def texts(seed: int, size: int) -> list[tuple[str, str]]:
    """Returns the (prompt, answer) pairs in `sequences(seed, size)`."""
    start = 1 + PROMPT_LENGTH
    drawn = sequences(seed, size).tolist()
    return [(decode(ids[:start]), decode(ids[start:])) for ids in drawn]


def parses(answer: str) -> bool:
    """Whether the grammar produces exactly this answer, including its spaces."""
    kinds = [_KIND_OF.get(word, "?") for word in answer.split(" ")]
    return _ANSWER.fullmatch("".join(kinds)) is not None


def formality(text: str) -> float:
    """Computes (formal - casual) / (formal + casual) words; NaN without any."""
    return _balance(text, _FORMAL, _CASUAL)


def sentiment(text: str) -> float:
    """Computes (positive - negative) / all adjectives; NaN without any."""
    return _balance(text, _POSITIVE, _NEGATIVE)


def listness(text: str) -> float:
    """Computes (items - sentences) / units: 1 is a list, -1 prose; NaN without any."""
    return _balance(text, {BULLET}, ENDS)


def num_units(text: str) -> int:
    """Counts the items and sentences of a text."""
    return sum(word == BULLET or word in ENDS for word in text.split())


def write_tokenizer(folder: str | pathlib.Path) -> None:
    """Writes a Hugging Face tokenizer of this vocabulary.

    `transformers.AutoTokenizer` loads it. It is a word-level model that splits at white
    space, adds `<bos>` at the beginning like Llama's tokenizers, and joins words with
    spaces. An unknown word is an error, as in `encode`: there is no token for it.

    Args:
      folder: for `tokenizer.json` and `tokenizer_config.json`; made if necessary.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pad, bos, eos = SPECIALS
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": word, "special": True, **flags}
            for i, word in enumerate(SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, first],
            "pair": [start, first, second],
            "special_tokens": {bos: {"id": bos, "ids": [BOS], "tokens": [bos]}},
        },
        "decoder": None,
        # The format requires the name of an unknown token, which need not exist.
        "model": {"type": "WordLevel", "vocab": IDS, "unk_token": "<unk>"},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (("tokenizer", tokenizer), ("tokenizer_config", config)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _any_of(rng, words, shape) -> np.ndarray:
    """Draws words uniformly; returns their ids."""
    return np.array([IDS[word] for word in words])[rng.integers(len(words), size=shape)]


def _marked(rng, sides, rate, shape) -> np.ndarray:
    """Draws words of the second side with probability `rate`, else of the first."""
    first, second = (_any_of(rng, words, shape) for words in sides)
    return np.where(rng.random(shape) < rate, second, first)


def _slots(real, *slots) -> np.ndarray:
    """Flattens the slots of units to `[B, units * slots]`; unreal units are PAD."""
    filled = np.stack(np.broadcast_arrays(*slots), axis=-1)
    return np.where(real[..., None], filled, PAD).reshape(len(real), -1)


def _optional(rng, share, shape, *slots) -> list[np.ndarray]:
    """Keeps all of the slots with probability `share`, or else makes all PAD."""
    there = rng.random(shape) < share
    return [np.where(there, slot, PAD) for slot in slots]


def _items(rng, formality, sentiment, real) -> np.ndarray:
    adverb = _marked(rng, ADVERBS, formality, real.shape)
    adjective = _marked(rng, ADJECTIVES, sentiment, real.shape)
    return _slots(
        real,
        IDS[BULLET],
        *_optional(rng, ADVERB_SHARE, real.shape, adverb),
        adjective,
        _any_of(rng, ASPECTS, real.shape),
    )


def _sentences(rng, formality, sentiment, real) -> np.ndarray:
    opener, verb, adverb = (
        _marked(rng, sides, formality, real.shape)
        for sides in (OPENERS, VERBS, ADVERBS)
    )
    first, second = (_marked(rng, ADJECTIVES, sentiment, real.shape) for _ in range(2))
    return _slots(
        real,
        *_optional(rng, OPENER_SHARE, real.shape, opener, IDS[","]),
        _any_of(rng, SUBJECTS, real.shape),
        verb,
        *_optional(rng, ADVERB_SHARE, real.shape, adverb),
        first,
        *_optional(rng, SECOND_ADJECTIVE_SHARE, real.shape, IDS["and"], second),
        _any_of(rng, ENDS, real.shape),
    )


def _balance(text, more, less) -> float:
    words = text.split()
    plus, minus = (sum(word in side for word in words) for side in (more, less))
    return (plus - minus) / (plus + minus) if plus + minus else math.nan
