"""Makes a dataset of people's preferences: `fsa prepare --out=DIR ...`.

Sources, of which several can be combined (docs/data.md has formats and more examples):

    --choices=A.jsonl.gz,B.csv --ratings=C.parquet   your own tables
    --polis=FOLDER_OR_NPZ --polis_table=contested    votes of a consultation
    --ultrafeedback=FILE --objectives=helpfulness,honesty
    --samples=FILE --attributes=mood                 simulated users of samples
    --choices=A.csv --samples=FILE                   answers without choices

    fsa prepare --choices=choices.csv --out=data/mine

With `--gguf=FILE` it makes a Hugging Face folder of a language model instead
(docs/policies.md).
"""

from collections.abc import Iterator, Sequence

from absl import flags

from fsa.commands import command_line
from fsa.data import preparation
from fsa.data.preparation import Source
from fsa.data.sources import polis, ultrafeedback
from fsa.data.splits import SPLITS
from fsa.data.tables import Reader
from fsa.errors import InputError
from fsa.language.huggingface import gguf

_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_CHOICES = flags.DEFINE_list("choices", [], "Choice tables.")
_RATINGS = flags.DEFINE_list("ratings", [], "Rating tables.")
flags.DEFINE_alias("judgements", "ratings")
_POLIS = flags.DEFINE_list("polis", [], "Polis exports (folders) or compact .npz.")
_POLIS_TABLE = flags.DEFINE_enum(
    "polis_table",
    None,
    [*polis.TABLES, "none"],
    "Choices to derive from the votes; contested unless --choices are given.",
)
_POLIS_NAME = flags.DEFINE_string(
    "polis_name", "", "Name of the conversation; that of the folder or file."
)
_POLIS_PROMPT = flags.DEFINE_string(
    "polis_prompt", "", "Question that the statements answer."
)
_ULTRAFEEDBACK = flags.DEFINE_string("ultrafeedback", None, "Raw UltraFeedback rows.")
_OBJECTIVES = flags.DEFINE_list(
    "objectives", list(ultrafeedback.HH), "Ratings that are the users of UltraFeedback."
)
_SAMPLES = flags.DEFINE_string(
    "samples",
    None,
    "Answers of `fsa sample`. Without --attributes nobody chooses between them: they "
    "join the choices of other sources, for a policy to be distilled on.",
)
_ATTRIBUTES = flags.DEFINE_list(
    "attributes",
    [],
    "Attributes that simulated users of --samples care about: with one, users are of "
    "two opposite groups; with several, each user weighs them differently.",
)
_AXES = flags.DEFINE_bool(
    "axes",
    False,
    "With several --attributes: each user cares about one alone, so there are two "
    "opposite groups for each.",
)
_USERS = flags.DEFINE_list(
    "users",
    ["train:60", "valid:10", "test:40"],
    "Number of simulated users; with groups, of each group.",
)
_NUM_CHOICES = flags.DEFINE_list(
    "num_choices",
    ["train:60", "valid:16", "test:30"],
    "Number of choices of each simulated user.",
)
_MIN_GAP = flags.DEFINE_float(
    "min_gap", 0.5, "Least difference of the attributes of two answers to choose from."
)
_SLOPE = flags.DEFINE_float(
    "slope", None, "Bradley-Terry-Luce slope of simulated choices; exact if not given."
)
_WHERE = flags.DEFINE_multi_string("where", [], "Only rows with COLUMN=VALUE.")
_GROUP_COLUMN = flags.DEFINE_string(
    "group_column", "group", "Column of the users' groups."
)
_SPLIT_BY = flags.DEFINE_enum(
    "split_by",
    None,
    ["user", "prompt"],
    "Unit that is in one split only; by default user, or prompt for UltraFeedback.",
)
_SPLIT_SEED = flags.DEFINE_integer(
    "split_seed", preparation.SEED, "Seed of splits and draws."
)
_MAX_BAD_SHARE = flags.DEFINE_float(
    "max_bad_share", 0.01, "Largest share of bad rows that a file may have.", 0.0, 1.0
)
_VECTORS = flags.DEFINE_string("vectors", None, ".npy file, one vector a row.")
_VECTOR_IDS = flags.DEFINE_string("vector_ids", None, "Table with ids of the vectors.")
_EMBEDDER = flags.DEFINE_string(
    "embedder", "", "Name of the model that made --vectors; the file's name."
)
_TABLES_OUT = flags.DEFINE_string("tables_out", None, "Folder to save the tables in.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing dataset.")
_GGUF = flags.DEFINE_string("gguf", None, "Language model to convert.")
_GGUF_DTYPE = flags.DEFINE_enum(
    "gguf_dtype", gguf.DTYPES[0], gguf.DTYPES, "Type of the converted weights."
)


def _split_by() -> str:
    return _SPLIT_BY.value or ("prompt" if _ULTRAFEEDBACK.value else "user")


def _reader() -> Reader:
    where = {}
    for condition in _WHERE.value:
        column, equals, value = condition.partition("=")
        if not equals:
            raise InputError(f"--where={condition}: write --where=COLUMN=VALUE")
        where[column] = value
    return Reader(
        where=where,
        split_by=_split_by(),
        group_column=_GROUP_COLUMN.value,
        max_bad_share=_MAX_BAD_SHARE.value,
    )


def _by_split(flag: flags.FlagHolder) -> dict[str, int]:
    found = {}
    for entry in flag.value:
        split, _, number = entry.partition(":")
        if split not in SPLITS or not number.isdecimal():
            raise InputError(
                f"--{flag.name}={entry}: write split:number, as in train:60"
            )
        found[split] = int(number)
    return found


def _sources() -> Iterator[Source]:
    reader = _reader()
    yield preparation.read_tables(_CHOICES.value, _RATINGS.value, reader)
    yield preparation.read_polis(
        _POLIS.value,
        polis_table=_POLIS_TABLE.value or ("none" if _CHOICES.value else "contested"),
        polis_name=_POLIS_NAME.value,
        polis_prompt=_POLIS_PROMPT.value,
        seed=_SPLIT_SEED.value,
    )
    if _ULTRAFEEDBACK.value:
        yield preparation.read_ultrafeedback(
            _ULTRAFEEDBACK.value, _OBJECTIVES.value, reader
        )
    others = _CHOICES.value or _RATINGS.value or _POLIS.value or _ULTRAFEEDBACK.value
    if _SAMPLES.value and others and not _ATTRIBUTES.value:
        for flag in (_AXES, _USERS, _NUM_CHOICES, _MIN_GAP, _SLOPE):
            if flag.present:
                raise InputError(
                    f"--{flag.name}: is for simulated users; say with --attributes "
                    "what they care about, or leave it out"
                )
        yield preparation.read_answers(_SAMPLES.value)
    elif _SAMPLES.value:
        yield preparation.simulate_choices(
            _SAMPLES.value,
            _ATTRIBUTES.value,
            axes=_AXES.value,
            users=_by_split(_USERS),
            num_choices=_by_split(_NUM_CHOICES),
            min_gap=_MIN_GAP.value,
            slope=_SLOPE.value,
            seed=_SPLIT_SEED.value,
        )


def _convert_model() -> None:
    for flag in (_CHOICES, _RATINGS, _POLIS, _ULTRAFEEDBACK, _SAMPLES):
        if flag.value:
            raise InputError(
                f"--gguf makes a model, --{flag.name} a dataset; give one at a time"
            )
    gguf.convert(_GGUF.value, _OUT.value, dtype=_GGUF_DTYPE.value)
    print(f"Made {_OUT.value}, a Hugging Face folder in {_GGUF_DTYPE.value}")


def main(argv: Sequence[str]) -> None:
    """Writes the dataset and prints a summary, or converts a language model."""
    command_line.refuse_arguments(argv)
    if _GGUF.value:
        _convert_model()
        return
    out = _OUT.value
    prepared = preparation.prepare(
        out,
        _sources(),
        split_by=_split_by(),
        split_seed=_SPLIT_SEED.value,
        vectors=_VECTORS.value,
        vector_ids=_VECTOR_IDS.value,
        embedder=_EMBEDDER.value,
        tables_out=_TABLES_OUT.value,
        overwrite=_OVERWRITE.value,
    )
    print(command_line.name_flags(preparation.summary(prepared)))
    if prepared.data.embedder:
        print(f"Made {out} with features of {prepared.data.embedder}")
        print(f"next: fsa probe --data={out}")
    elif _SAMPLES.value and not _ATTRIBUTES.value:
        print(f"Made {out}")
        print(
            f"next: train a reward model on {out}, and distill it into the model that "
            "was sampled: docs/policies.md, Two stages"
        )
    elif _SAMPLES.value:
        print(f"Made {out}")
        print(
            f"next: fsa train --config=mine.py --config.task.path={out} "
            "--config.language_model.path=FOLDER --workdir=runs/mine, where mine.py is "
            "a policy's config, such as experiments/policy/choices.py, and FOLDER the "
            "model that was sampled"
        )
    else:
        print(f"Made {out}; next: fsa embed --data={out} --model=FOLDER")
