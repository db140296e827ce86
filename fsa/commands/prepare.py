"""Makes a data set of people's preferences: `python -m launch.prepare --out=DIR ...`.

Sources, any of them together (docs/data.md has the formats and more examples):

  --choices=A.jsonl.gz,B.csv --judgements=C.parquet    your own tables
  --polis=FOLDER_OR_NPZ --polis_table=contested        votes of a Polis consultation
  --ultrafeedback=FILE --objectives=helpfulness,honesty
  --samples=FILE --attributes=mood                     simulated users of sampled texts

Or, with --gguf=FILE, a Hugging Face folder of a language model (docs/policies.md).
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from fsa import digests
from fsa.commands import command_line
from fsa.data import dataset, manifest, splits, tables, vectors
from fsa.data.collect import collect
from fsa.data.sources import polis, polis_files, sampled, ultrafeedback
from fsa.data.sources.attributes import ATTRIBUTES
from fsa.data.tables import Choice, Rating, Report
from fsa.errors import InputError
from fsa.language.huggingface import gguf

# With it the published tables of Polis votes come out as they are.
_SEED = 20240607

_OUT = flags.DEFINE_string("out", None, "Folder to make.", required=True)
_CHOICES = flags.DEFINE_list("choices", [], "Choice tables.")
_RATINGS = flags.DEFINE_list("judgements", [], "Judgement tables.")
_POLIS = flags.DEFINE_list("polis", [], "Polis exports (folders) or compact .npz.")
_POLIS_TABLE = flags.DEFINE_enum(
    "polis_table",
    None,
    [*polis.TABLES, "none"],
    "Choices to make of the votes; contested unless --choices are given.",
)
_POLIS_NAME = flags.DEFINE_string(
    "polis_name", "", "Name of the conversation; that of the folder or file."
)
_POLIS_PROMPT = flags.DEFINE_string("polis_prompt", "", "What the statements answer.")
_ULTRAFEEDBACK = flags.DEFINE_string("ultrafeedback", None, "Raw UltraFeedback rows.")
_OBJECTIVES = flags.DEFINE_list(
    "objectives", list(ultrafeedback.HH), "Ratings that are the users of UltraFeedback."
)
_SAMPLES = flags.DEFINE_string("samples", None, "Answers of `launch.sample`.")
_ATTRIBUTES = flags.DEFINE_list(
    "attributes",
    [],
    "What simulated users care about in --samples: one, and they are of two opposite "
    "groups; several, and each weighs them in its own way.",
)
_USERS = flags.DEFINE_list(
    "users",
    ["train:60", "valid:10", "test:40"],
    "Simulated users, of each group if there are groups.",
)
_NUM_CHOICES = flags.DEFINE_list(
    "num_choices", ["train:60", "valid:16", "test:30"], "Of each simulated user."
)
_MIN_GAP = flags.DEFINE_float(
    "min_gap", 0.5, "Least difference of the attributes of two answers to choose from."
)
_SLOPE = flags.DEFINE_float(
    "slope", None, "Bradley-Terry-Luce slope of simulated choices; exact if not given."
)
_WHERE = flags.DEFINE_multi_string("where", [], "Only rows with COLUMN=VALUE.")
_GROUP_COLUMN = flags.DEFINE_string("group_column", "group", "Groups of users.")
_SPLIT_BY = flags.DEFINE_enum(
    "split_by",
    None,
    ["user", "prompt"],
    "What is in one split only; user, but prompt for UltraFeedback.",
)
_SPLIT_SEED = flags.DEFINE_integer("split_seed", _SEED, "Seed of splits and draws.")
_MAX_BAD_SHARE = flags.DEFINE_float(
    "max_bad_share", 0.01, "More bad rows than this in a file are an error.", 0.0, 1.0
)
_VECTORS = flags.DEFINE_string("vectors", None, ".npy, a ready-made vector a row.")
_VECTOR_IDS = flags.DEFINE_string("vector_ids", None, "Table with their ids: `id`.")
_EMBEDDER = flags.DEFINE_string("embedder", "", "What made --vectors; the file's name.")
_TABLES_OUT = flags.DEFINE_string("tables_out", None, "Folder to save the tables in.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a store that is there.")
_GGUF = flags.DEFINE_string("gguf", None, "Language model to convert, nothing else.")
_GGUF_DTYPE = flags.DEFINE_enum(
    "gguf_dtype", gguf.DTYPES[0], gguf.DTYPES, "What its weights become."
)


@dataclasses.dataclass
class _Sources:
    """What was read so far."""

    choices: list[Choice] = dataclasses.field(default_factory=list)
    ratings: list[Rating] = dataclasses.field(default_factory=list)
    reports: list[Report] = dataclasses.field(default_factory=list)
    digests: dict[str, str] = dataclasses.field(default_factory=dict)

    def note_files(self, paths: Iterable[str | pathlib.Path]) -> None:
        """Keeps the SHA-256 of source files."""
        for path in map(pathlib.Path, paths):
            if path.is_file():
                self.digests[str(path)] = digests.of_file(path)


def _reader() -> tables.Reader:
    where = {}
    for condition in _WHERE.value:
        column, equals, value = condition.partition("=")
        if not equals:
            raise InputError(f"--where={condition}: write --where=COLUMN=VALUE")
        where[column] = value
    return tables.Reader(
        where=where,
        split_by=_split_by(),
        group_column=_GROUP_COLUMN.value,
        max_bad_share=_MAX_BAD_SHARE.value,
    )


def _split_by() -> str:
    if _ULTRAFEEDBACK.value and _SPLIT_BY.value == "user":
        raise InputError(
            "--split_by=user: the users of UltraFeedback are objectives; use "
            "--split_by=prompt"
        )
    return _SPLIT_BY.value or ("prompt" if _ULTRAFEEDBACK.value else "user")


def _read_tables(sources: _Sources, reader: tables.Reader) -> None:
    for path in _CHOICES.value:
        rows, report = reader.choices(path)
        sources.choices += rows
        sources.reports.append(report)
    for path in _RATINGS.value:
        judged, report = reader.ratings(path)
        sources.ratings += judged
        sources.reports.append(report)
    sources.note_files([*_CHOICES.value, *_RATINGS.value])


def _read_polis(sources: _Sources) -> None:
    named = _POLIS_NAME.value or _POLIS_PROMPT.value
    if named and len(_POLIS.value) > 1:
        raise InputError("--polis_name, --polis_prompt: are for one --polis at a time")
    seed = _SPLIT_SEED.value
    table = _POLIS_TABLE.value or ("none" if _CHOICES.value else "contested")
    for path in map(pathlib.Path, _POLIS.value):
        conversation, report = polis_files.read(
            path, seed=seed, name=_POLIS_NAME.value, prompt=_POLIS_PROMPT.value
        )
        if table != "none":
            sources.choices += polis.TABLES[table](conversation, seed)
        sources.ratings += polis.ratings(conversation)
        sources.reports.append(report)
        sources.note_files(sorted(path.iterdir()) if path.is_dir() else [path])


def _read_ultrafeedback(sources: _Sources, reader: tables.Reader) -> None:
    rows, report = ultrafeedback.read(_ULTRAFEEDBACK.value, _OBJECTIVES.value, reader)
    sources.choices += rows
    sources.reports.append(report)
    sources.note_files([_ULTRAFEEDBACK.value])


def _read_samples(sources: _Sources) -> None:
    if not _ATTRIBUTES.value:
        raise InputError("--attributes: name what users of --samples care about")
    unknown = set(_ATTRIBUTES.value) - set(ATTRIBUTES)
    if unknown:
        raise InputError(
            f"--attributes={min(unknown)}: none of {', '.join(ATTRIBUTES)}"
        )
    found = [ATTRIBUTES[name] for name in _ATTRIBUTES.value]
    samples, report = sampled.read(_SAMPLES.value)
    num_users, seed = _by_split("users", _USERS.value), _SPLIT_SEED.value
    if len(found) == 1:
        weights = {
            name: [sign] for name, sign in zip(found[0].sides, (1, -1), strict=True)
        }
        users = sampled.users_of_groups(weights, num_users)
    else:
        users = sampled.users_on_sphere(len(found), num_users, seed=seed)
    sources.choices += sampled.choose(
        samples,
        users,
        [attribute.measure for attribute in found],
        num_choices=_by_split("num_choices", _NUM_CHOICES.value),
        min_gap=_MIN_GAP.value,
        slope=_SLOPE.value,
        seed=seed,
    )
    sources.reports.append(report)
    sources.note_files([_SAMPLES.value])


def _by_split(flag: str, entries: Sequence[str]) -> dict[str, int]:
    found = {}
    for entry in entries:
        split, _, number = entry.partition(":")
        if split not in splits.SPLITS or not number.isdecimal():
            raise InputError(f"--{flag}={entry}: write split:number, as in train:60")
        found[split] = int(number)
    return found


def _add_vectors(data: dataset.Dataset, sources: _Sources) -> dataset.Dataset:
    if bool(_VECTORS.value) != bool(_VECTOR_IDS.value):
        raise InputError("--vectors and --vector_ids: give both or neither")
    if not _VECTORS.value:
        return data
    found = vectors.read(_VECTORS.value, _VECTOR_IDS.value, data.item_ids)
    sources.note_files([_VECTORS.value, _VECTOR_IDS.value])
    embedder = _EMBEDDER.value or pathlib.Path(_VECTORS.value).stem
    return dataclasses.replace(
        data, features=dataset.check_vectors(found, data.item_ids), embedder=embedder
    )


def _table_paths() -> dict[str, pathlib.Path]:
    """Kind -> where to save the table, if it is to be; refuses to overwrite."""
    if not _TABLES_OUT.value:
        return {}
    folder = pathlib.Path(_TABLES_OUT.value)
    paths = {kind: folder / f"{kind}.jsonl.gz" for kind in ("choices", "judgements")}
    for path in paths.values():
        if path.exists() and not _OVERWRITE.value:
            raise InputError(
                f"{path}: is there; choose another --tables_out or pass --overwrite"
            )
    return paths


def _save_tables(paths: Mapping[str, pathlib.Path], **rows: Sequence[Any]) -> None:
    for kind, path in paths.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if rows[kind]:
                tables.write(path, rows[kind])
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); choose another "
                "--tables_out"
            ) from error


def _print_summary(reports: Sequence[Report], data: dataset.Dataset) -> None:
    for report in reports:
        bad = sum(count for count, _ in report.bad.values())
        print(f"{report.path}: {report.rows:,} rows, {bad:,} left out")
        for reason, (count, first) in report.bad.items():
            print(f"  {count:>9,} {reason} (first in row {first})")
        for what, count in report.notes.items():
            print(f"  {count:>9,} {what}")
    print(f"{'items':<21}{len(data.texts):>9,}")
    print(f"{'prompts':<21}{len(data.prompts):>9,}")
    counts = dataset.counts(data)
    for title in next(iter(counts.values())):
        of_split = (f"{counts[split][title]:>9,} {split}" for split in splits.SPLITS)
        print(f"{title.replace('_', ' '):<21}" + "".join(of_split))


def _convert_model() -> None:
    for flag in (_CHOICES, _RATINGS, _POLIS, _ULTRAFEEDBACK, _SAMPLES):
        if flag.value:
            raise InputError(
                f"--gguf makes a model, --{flag.name} a store; give one at a time"
            )
    gguf.convert(_GGUF.value, _OUT.value, dtype=_GGUF_DTYPE.value)
    print(f"Made {_OUT.value}, a Hugging Face folder in {_GGUF_DTYPE.value}")


def main(argv: Sequence[str]) -> None:
    """Reads the sources, writes the store and prints a summary."""
    command_line.refuse_arguments(argv)
    if _GGUF.value:
        _convert_model()
        return
    out = pathlib.Path(_OUT.value)
    manifest.check_free(out, _OVERWRITE.value)
    table_paths = _table_paths()
    sources, reader = _Sources(), _reader()
    _read_tables(sources, reader)
    if _POLIS.value:
        _read_polis(sources)
    if _ULTRAFEEDBACK.value:
        _read_ultrafeedback(sources, reader)
    if _SAMPLES.value:
        _read_samples(sources)
    if not sources.reports:
        raise InputError("nothing to read: give --choices, --judgements or another")
    choices, ratings = splits.assign(
        sources.choices,
        sources.ratings,
        split_by=_split_by(),
        seed=_SPLIT_SEED.value,
    )
    data = _add_vectors(collect(choices, ratings), sources)
    dataset.write(out, data, sources=sources.digests, overwrite=_OVERWRITE.value)
    _save_tables(table_paths, choices=choices, ratings=ratings)
    _print_summary(sources.reports, data)
    if data.embedder:
        print(f"Made {out} with features of {data.embedder}")
    elif _SAMPLES.value:
        print(f"Made {out}; next: python -m launch.train --config.task.path={out} ...")
    else:
        print(f"Made {out}; next: python -m launch.embed --data={out} --model=FOLDER")


if __name__ == "__main__":
    command_line.run(main)
