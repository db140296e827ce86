"""Named attributes of texts, and the share of texts on each side of an attribute.

An attribute is measured in the text alone, by the rules and word lists in this file, so
that "the policy writes what the user prefers" can be checked without a judge.
`ATTRIBUTES` has those of the controllable corpus (`fsa.data.sources.corpus`) and those
of English.

A balance of marks, (more - less) / (more + less), is in [-1, 1], is NaN for a text
without marks, and has its threshold at 0. A count has no threshold of its own, but that
of reference texts, their median (`middle`).

Shapes: N texts.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from fsa.data.sources import corpus
from fsa.language import text_features
from fsa.language.text_features import words

# Words for feelings in children's stories, without those of nearly every story (play,
# friend, love). A word counts only in the forms listed here.
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
# Words from this length on are formal; shorter formal words are listed above.
LONG_WORD = 10

_CONTRACTION = re.compile(r"(?:n't|'(?:m|re|ve|ll|d))$")
# Not the points in 3.14 or U.S.A, nor three sentences in an ellipsis.
_SENTENCE_END = re.compile(r"[.!?]+(?!\w)")
_QUOTES = re.compile(r'["“”«»]')
# A possessive looks like "is"; these are the words after which it is "is" or "has".
_S_HOSTS = frozenset(
    "it that this there here what who where how he she let one everything".split()
)


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A measure of texts with two sides.

    Attributes:
      measure: text -> number, NaN if the text shows neither side.
      description: how it is measured, for reports.
      sides: the name of the side of large numbers and that of small numbers.
      middle: threshold between the sides; None for the median over reference texts.
    """

    measure: Callable[[str], float]
    description: str
    sides: tuple[str, str]
    middle: float | None = 0.0


def sentences(text: str) -> float:
    """Counts the sentence ends (. ! ?); an unfinished last sentence is not counted."""
    return float(len(_SENTENCE_END.findall(text)))


def num_words(text: str) -> float:
    """Counts the words."""
    return float(len(words(text)))


def log_words(text: str) -> float:
    """Computes log(1 + number of words), in which twice as long is equally far."""
    return math.log1p(num_words(text))


def mood(text: str) -> float:
    """Counts happy minus sad words (`HAPPY`, `SAD`); 0 for a text without any."""
    found = words(text)
    return float(_count(found, HAPPY) - _count(found, SAD))


def dialogue(text: str) -> float:
    """Returns 1 for a text with a quotation mark, -1 without, NaN for a blank one."""
    if not text.strip():
        return math.nan
    return 1.0 if _QUOTES.search(text) else -1.0


def lists(text: str) -> float:
    """Computes (list lines - other lines) / lines, see `text_features.list_lines`."""
    marked, total = text_features.list_lines(text)
    return _balance(marked, total - marked)


def formality(text: str) -> float:
    """Computes (formal - casual) / (formal + casual) marks.

    Formal marks are words of `LONG_WORD` letters or more and those in `FORMAL`; casual
    marks are contractions, words of the first and second person (`PERSONS`), `SLANG`
    and exclamation marks. A contraction such as "you're" is one mark. This follows
    dimension 1 (informational against involved) of Biber 1988 (Variation across Speech
    and Writing), as far as it can be counted without a part-of-speech tagger.
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
    "log_words": Attribute(
        log_words, "log(1 + number of words)", ("long", "short"), middle=None
    ),
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
    """Computes the threshold between an attribute's two sides.

    Args:
      attribute: if it has no threshold of its own, it is the median over the reference.
      reference: texts, such as those of the unconditioned model.

    Returns:
      The threshold; NaN if it needs a reference and no text of it shows a side.
    """
    if attribute.middle is not None:
        return attribute.middle
    values = np.array([attribute.measure(text) for text in reference], np.float64)
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else math.nan


def sides(attribute: Attribute, texts: Sequence[str], middle: float) -> np.ndarray:
    """Returns 1 for texts on the attribute's first side and 0 on its second, `[N]`.

    A text that shows neither side, or is exactly at the threshold, is NaN. The mean of
    the others (`np.nanmean`) is the share of the first side among texts that show one.
    """
    values = np.array([attribute.measure(text) for text in texts], np.float64)
    return np.where(values == middle, np.nan, 0.5 + 0.5 * np.sign(values - middle))


def known_word_share(texts: Sequence[str], pool: Iterable[str]) -> np.ndarray:
    """Computes the share of each text's words that occur in a pool of texts, `[N]`.

    A broken model invents words. Texts without a word give NaN.
    """
    known = {word for text in pool for word in words(text)}
    found = map(words, texts)
    return np.array([_share(_count(of_text, known), len(of_text)) for of_text in found])


def distinct_2(texts: Sequence[str]) -> float:
    """Computes distinct-2: different pairs of neighbouring words, as a share of all.

    A model that repeats itself has few (Li et al. 2016, "A Diversity-Promoting
    Objective Function for Neural Conversation Models"). More texts have a smaller
    share, so only equally many texts are compared. NaN if there is no pair.
    """
    pairs = [pair for text in texts for pair in itertools.pairwise(words(text))]
    return _share(len(set(pairs)), len(pairs))


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
