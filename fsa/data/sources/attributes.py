"""What a text is like: named attributes, the share of texts on a side, validity.

An attribute is measured in the text alone, by rules and word lists stated here, so that
"the policy writes what the user prefers" can be checked without a judge. `ATTRIBUTES`
names them: those of the controllable corpus (`fsa.data.sources.corpus`) and those of English.

A balance of marks, (more - less) / (more + less), lies in [-1, 1], is NaN in a text
without either, and has its middle at 0. A count has no middle of its own: texts are on
one side or the other of a reference's median (`middle`).

Shapes: N texts.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from fsa.data.sources import corpus

# Feelings as children's stories name them; what they merely tell of (play, friend,
# love) is in nearly every one. A word is a mark as it stands here.
# fmt: off
HAPPY = frozenset(
    """
    happy happily happier happiest happiness glad gladly joy joyful joyfully cheerful
    cheer cheered cheering delighted pleased fun funny laugh laughs laughed laughing
    laughter giggle giggled giggling smile smiles smiled smiling grin grinned proud
    proudly excited excitedly exciting enjoy enjoyed enjoying hug hugs hugged hugging
    kiss kissed thank thanked thankful grateful wonderful amazing yay hooray
    """.split()
)
SAD = frozenset(
    """
    sad sadly sadder saddest sadness unhappy cry cries cried crying tear tears sob
    sobbed sobbing weep wept upset angry angrily anger mad mean afraid scared scary fear
    frightened worry worried lonely alone hurt hurts pain sick lost broke broken bad
    badly worse worst terrible awful horrible sorry die died dead hate hated scream
    screamed yell yelled fight fought disappointed ashamed trouble dangerous
    """.split()
)
SLANG = frozenset(
    """
    ok okay yeah yep yup nope nah hey hi wow cool awesome stuff guy guys kid kids gonna
    wanna gotta kinda sorta lots super totally basically pretty bunch tons huge btw lol
    haha oh um huh folks buddy grab check
    """.split()
)
FORMAL = frozenset(
    """
    thus hence moreover furthermore therefore however whereas regarding concerning
    thereby therein wherein whereby nevertheless nonetheless consequently additionally
    upon shall whom such various numerous several obtain provide require ensure enable
    utilize utilise facilitate
    """.split()
)
PERSONS = frozenset(
    "i me my mine myself you your yours yourself we us our ours ourselves".split()
)
# fmt: on
# Shorter formal words are listed above.
LONG_WORD = 10

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_CONTRACTION = re.compile(r"(?:n't|'(?:m|re|ve|ll|d))$")
# Not the points in 3.14 or U.S.A, nor three sentences in an ellipsis.
_SENTENCE_END = re.compile(r"[.!?]+(?!\w)")
_QUOTES = re.compile(r'["“”«»]')
_LIST_LINE = re.compile(r"(?:[-*+•]|\(?\d{1,3}[.)])\s")
# A possessive looks like "is"; these are the words after which it is "is" or "has".
_S_HOSTS = frozenset(
    "it that this there here what who where how he she let one everything".split()
)


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A measure of texts.

    Attributes:
      measure: text -> number, NaN where the text shows neither side.
      description: how it is measured, for reports.
      sides: names of the side of large and of that of small numbers.
      middle: the number between the sides; None for that of a reference.
    """

    measure: Callable[[str], float]
    description: str
    sides: tuple[str, str]
    middle: float | None = 0.0


def words(text: str) -> list[str]:
    """The words of a text in lower case; "don't" is one."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> float:
    """Number of runs of . ! ? that end a sentence; a cut off last one is none."""
    return float(len(_SENTENCE_END.findall(text)))


def num_words(text: str) -> float:
    """Number of words."""
    return float(len(words(text)))


def mood(text: str) -> float:
    """Happy minus sad words, of `HAPPY` and `SAD`; a text without any stands at 0."""
    found = words(text)
    return float(_count(found, HAPPY) - _count(found, SAD))


def dialogue(text: str) -> float:
    """1 with a quotation mark in the text, -1 without; NaN for a blank one."""
    if not text.strip():
        return math.nan
    return 1.0 if _QUOTES.search(text) else -1.0


def lists(text: str) -> float:
    """(list lines - other lines) / lines that are not blank.

    A list line begins with a bullet (-, *, +, •) or a number (1. or 1) or (1)).
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = sum(bool(_LIST_LINE.match(line)) for line in lines)
    return _balance(marked, len(lines) - marked)


def formality(text: str) -> float:
    """(formal - casual) / (formal + casual) marks.

    Formal are words of `LONG_WORD` letters or more and those in `FORMAL`; casual are
    contractions, words of the first and second person (`PERSONS`), `SLANG` and every
    exclamation mark. A contraction such as "you're" is one mark. After the
    informational and the involved side of Biber 1988 (Variation across Speech and
    Writing), dimension 1, as far as both can be counted without a tagger.
    """
    found = [word.replace("’", "'") for word in words(text)]
    casual = sum(map(_is_casual, found)) + text.count("!")
    return _balance(sum(map(_is_formal, found)), casual)


ATTRIBUTES = {
    "corpus_formality": Attribute(
        corpus.formality,
        "(formal - casual) / (formal + casual) words of the corpus",
        ("formal", "casual"),
    ),
    "corpus_sentiment": Attribute(
        corpus.sentiment,
        "(positive - negative) / (positive + negative) adjectives of the corpus",
        ("positive", "negative"),
    ),
    "corpus_lists": Attribute(
        corpus.listness,
        "(items - sentences) / (items + sentences) of the corpus",
        ("list", "prose"),
    ),
    "corpus_length": Attribute(
        corpus.num_units,
        "number of items and sentences of the corpus",
        ("long", "short"),
        middle=None,
    ),
    "sentences": Attribute(
        sentences, "number of sentence ends (. ! ?)", ("many", "few"), middle=None
    ),
    "words": Attribute(num_words, "number of words", ("long", "short"), middle=None),
    "mood": Attribute(
        mood, "words of a happy list minus words of a sad one", ("happy", "sad")
    ),
    "dialogue": Attribute(
        dialogue, "1 with a quotation mark, -1 without", ("dialogue", "narration")
    ),
    "lists": Attribute(
        lists,
        "(lines with a bullet or number - other lines) / lines",
        ("list", "prose"),
    ),
    "formality": Attribute(
        formality,
        "(long or formal words - contractions, I and you, slang, exclamation marks) / "
        "their sum",
        ("formal", "casual"),
        middle=None,
    ),
}


def middle(attribute: Attribute, reference: Iterable[str]) -> float:
    """The number between the sides: the attribute's own, else the reference's median.

    Args:
      attribute: whose middle.
      reference: texts of the unconditioned model, say.

    Returns:
      NaN where it takes a reference and no text of it shows a side.
    """
    if attribute.middle is not None:
        return attribute.middle
    values = np.array([attribute.measure(text) for text in reference], np.float64)
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else math.nan


def sides(attribute: Attribute, texts: Sequence[str], middle: float) -> np.ndarray:
    """1 for texts on the attribute's first side, 0 on its second, `[N]`.

    NaN where a text shows neither, or stands in the middle. The mean of the others
    (`np.nanmean`) is the share of texts with the attribute among those that show
    either.
    """
    values = np.array([attribute.measure(text) for text in texts], np.float64)
    return np.where(values == middle, np.nan, 0.5 + 0.5 * np.sign(values - middle))


def known_word_share(texts: Sequence[str], pool: Iterable[str]) -> np.ndarray:
    """Share of each text's words that occur in a pool of texts, `[N]`.

    A model that breaks down invents words. NaN for texts without a word.
    """
    known = {word for text in pool for word in words(text)}
    found = map(words, texts)
    return np.array([_share(_count(of_text, known), len(of_text)) for of_text in found])


def _count(found: Sequence[str], marks: Collection[str]) -> int:
    return sum(word in marks for word in found)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _balance(more: int, less: int) -> float:
    return _share(more - less, more + less)


def _is_casual(word: str) -> bool:
    host, _, ending = word.partition("'")
    contracted = host in _S_HOSTS if ending == "s" else _CONTRACTION.search(word)
    return word in PERSONS or word in SLANG or bool(contracted)


def _is_formal(word: str) -> bool:
    long = len(word.partition("'")[0]) >= LONG_WORD
    return (long or word in FORMAL) and not _is_casual(word)
