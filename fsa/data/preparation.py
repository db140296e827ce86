"""Prepares datasets: reads, joins and splits sources, and writes them to disk.

`prepare` takes any number of sources, each read by a function of this module. The
arguments that messages name in backticks are also flags of `fsa.commands.prepare`.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fsa import digests, folders, text_tables
from fsa.data import dataset, files, manifest, splits, vectors
from fsa.data.collect import Collector
from fsa.data.dataset import Dataset
from fsa.data.sources import polis, polis_files, sampled, ultrafeedback
from fsa.data.sources.attributes import ATTRIBUTES
from fsa.data.tables import Choice, Rating, Reader, Report, Table, is_path
from fsa.errors import InputError

Path = str | pathlib.Path

# Default seed of splits and draws; it reproduces the published tables of Polis votes.
SEED = 20240607


class OpenTable(NamedTuple):
    """A table whose rows are read when the dataset is made.

    Attributes:
      path: the file.
      what: "choices" or "ratings".
      reader: reads its rows.
      report: counts them.
    """

    path: Path
    what: str
    reader: Reader
    report: Report


class Source(NamedTuple):
    """The choices and ratings of one source, and answers that nobody decided on.

    Attributes:
      choices: rows that were read; some may lack a split.
      ratings: likewise.
      reports: for each table, how many rows were read and left out.
      files: the files that are read.
      digests: name -> SHA-256 of what was read from memory.
      tables: tables that are not read yet; their reports are among the others.
      group_column: the column of groups that one of its tables must have, if any.
      answers: prompt of the split "train" -> answers that are items though nobody
        decided on them.
    """

    choices: Sequence[Choice]
    ratings: Sequence[Rating]
    reports: Sequence[Report]
    files: Sequence[Path]
    digests: Mapping[str, str] = {}
    tables: Sequence[OpenTable] = ()
    group_column: str = ""
    answers: Mapping[str, Sequence[str]] = {}


class Prepared(NamedTuple):
    """A dataset that was written, the reports of its sources, and warnings.

    The users of the dataset are on disk.
    """

    data: Dataset
    reports: Sequence[Report]
    warnings: Sequence[str] = ()


def read_tables(
    choices: Sequence[Table], ratings: Sequence[Table], reader: Reader
) -> Source:
    """Reads choice tables and rating tables: files, or lists of dicts.

    Files are read when the dataset is made, since they may not fit in memory.

    Raises:
      InputError: if a table in memory cannot be used, or too many of its rows are bad.
    """
    read: dict[str, list] = {"choices": [], "ratings": []}
    reports, found, open_tables = [], {}, []
    for what, tables in (("choices", choices), ("ratings", ratings)):
        for i, table in enumerate(tables):
            if is_path(table):
                report = Report(str(table))
                open_tables.append(OpenTable(table, what, reader, report))
            else:
                rows, report = getattr(reader, what)(table)
                read[what] += rows
                found[f"{what}[{i}]"] = _digest(rows)
            reports.append(report)
    return Source(
        choices=read["choices"],
        ratings=read["ratings"],
        reports=reports,
        files=[table for table in (*choices, *ratings) if is_path(table)],
        digests=found,
        tables=open_tables,
        group_column=reader.group_column,
    )


def _digest(rows: Sequence[Choice | Rating]) -> str:
    """Computes the SHA-256 of the JSON of rows, without ever holding all of it."""
    hashed = hashlib.sha256(b"[")
    for i, row in enumerate(rows):
        others = [json.dumps(value) for value in row if not isinstance(value, bytes)]
        # Numbers come last, and their text is their JSON.
        features = [o.text if o.features else "[]" for o in row.options()]
        hashed.update(b", " * (i > 0))
        hashed.update(f"[{', '.join(others + features)}]".encode())
    hashed.update(b"]")
    return hashed.hexdigest()


def _check_groups(column: str, reports: Sequence[Report]) -> None:
    """Refuses a column of groups that no table has, unless it is the usual one."""
    if column == Reader.group_column or any(report.has_groups for report in reports):
        return
    found = "; ".join(f"{r.path} has {', '.join(r.columns)}" for r in reports)
    raise InputError(
        f"`group_column`={column}: no row names a group there; "
        f"{found or 'there is no table'}"
    )


def read_polis(
    paths: Sequence[Path],
    *,
    polis_table: str,
    polis_name: str = "",
    polis_prompt: str = "",
    seed: int,
) -> Source:
    """Reads the votes of Polis consultations and derives choices from them.

    Args:
      paths: exports (folders) or compact .npz files.
      polis_table: which choices to derive, a name in `polis.TABLES`, or "none".
      polis_name: name of the conversation; by default that of the folder or file.
      polis_prompt: the question that the statements answer; by default that in the
        files.
      seed: seed of splits and draws.

    Raises:
      InputError: a missing or damaged file, or a name for several conversations.
    """
    if (polis_name or polis_prompt) and len(paths) > 1:
        raise InputError(
            "`polis_name`, `polis_prompt`: give them with one consultation at a time"
        )
    choices, ratings, reports, files = [], [], [], []
    for path in map(pathlib.Path, paths):
        conversation, report = polis_files.read(
            path, seed=seed, name=polis_name, prompt=polis_prompt
        )
        if polis_table != "none":
            choices += polis.TABLES[polis_table](conversation, seed)
        ratings += polis.ratings(conversation)
        reports.append(report)
        files += sorted(path.iterdir()) if path.is_dir() else [path]
    return Source(choices, ratings, reports, files)


def read_ultrafeedback(path: Path, objectives: Sequence[str], reader: Reader) -> Source:
    """Reads the choices of UltraFeedback's objectives.

    Raises:
      InputError: as `ultrafeedback.read`, and for a split by user, since the users are
        the objectives, which are the same in every split.
    """
    if reader.split_by != "prompt":
        raise InputError(
            "`split_by` is user, but the users of UltraFeedback are objectives; split "
            "by prompt"
        )
    choices, report = ultrafeedback.read(path, objectives, reader)
    return Source(choices, [], [report], [path])


def simulate_choices(
    path: str,
    attributes: Sequence[str],
    *,
    axes: bool = False,
    users: Mapping[str, int],
    num_choices: Mapping[str, int],
    min_gap: float,
    slope: float | None,
    seed: int,
) -> Source:
    """Lets simulated users choose between sampled answers.

    Args:
      path: answers, as `fsa sample` writes them.
      attributes: names in `ATTRIBUTES`. With one attribute, users are of two opposite
        groups; with several, each user weighs them differently.
      axes: whether with several each user cares about one of them alone, so that there
        are two opposite groups for each; the two answers of a choice differ in it.
      users: split -> number of simulated users; with groups, of each group.
      num_choices: split -> number of choices of each user.
      min_gap: see `sampled.choose`.
      slope: see `sampled.choose`.
      seed: seed of all draws.

    Raises:
      InputError: unknown attributes, groups of the same name, or as `sampled.read` and
        `sampled.choose`.
    """
    if not attributes:
        raise InputError("`attributes`: name what the simulated users care about")
    if unknown := set(attributes) - set(ATTRIBUTES):
        raise InputError(
            f"`attributes`: unknown {min(unknown)!r}; use {', '.join(ATTRIBUTES)}"
        )
    found = [ATTRIBUTES[name] for name in attributes]
    sides = [side for attribute in found for side in attribute.sides]
    if axes and len(set(sides)) < len(sides):
        raise InputError(
            f"`attributes`: groups of users would have the same names, {sides}; name "
            "others, or leave out `axes`"
        )
    samples, report = sampled.read(path)
    if axes or len(found) == 1:
        together = [[attribute] for attribute in found]
    else:
        together = [found]
    choices = []
    for own in together:
        if len(own) == 1:
            weights = dict(zip(own[0].sides, ([1], [-1]), strict=True))
            simulated = sampled.users_of_groups(weights, users)
        else:
            simulated = sampled.users_on_sphere(len(own), users, seed=seed)
        choices += sampled.choose(
            samples,
            simulated,
            [attribute.measure for attribute in own],
            num_choices=num_choices,
            min_gap=min_gap,
            slope=slope,
            seed=seed,
        )
    return Source(choices, [], [report], [path])


def read_answers(path: str) -> Source:
    """Reads answers that nobody decided on, for a policy to be distilled on.

    Only those to prompts of the split "train" are taken, and no blank ones; prompts of
    the other splits are for texts of the trained policy.

    Args:
      path: answers, as `fsa sample` writes them.

    Raises:
      InputError: as `sampled.read`.
    """
    samples, report = sampled.read(path)
    rows = zip(samples.prompts, samples.answers, samples.splits, strict=True)
    answers = {
        prompt: [answer for answer in own if answer.strip()]
        for prompt, own, split in rows
        if split == splits.SPLITS[0]
    }
    report.notes["answers that nobody chose between"] = sum(map(len, answers.values()))
    return Source([], [], [report], [path], answers=answers)


def prepare(
    out: Path,
    sources: Iterable[Source],
    *,
    split_by: str = "user",
    split_seed: int = SEED,
    vectors: Path | None = None,
    vector_ids: Path | None = None,
    embedder: str = "",
    tables_out: Path | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Writes the dataset of some sources.

    Args:
      out: the directory to write.
      sources: the sources to join. If this is a generator, it starts after the paths to
        write to have been checked.
      split_by: "user" or "prompt", see `splits.assign`.
      split_seed: seed of the splits, see `splits.of`.
      vectors: .npy file with one vector for each item, or None.
      vector_ids: table with the ids of these vectors, or None.
      embedder: name of the model that made them; by default the name of their file.
      tables_out: folder to save the joined tables in, if given.
      overwrite: replace the dataset and the tables that exist.

    Raises:
      InputError: if a path exists or cannot be written, or if sources cannot be read or
        contradict each other.
    """
    manifest.check_free(pathlib.Path(out), overwrite)
    parent = pathlib.Path(os.path.realpath(out)).parent
    folders.check_writable(parent, "choose another `out`")
    table_paths = _table_paths(tables_out, out, overwrite)
    sources = list(sources)
    reports = [report for source in sources for report in source.reports]
    if not reports:
        raise InputError("nothing to read: give `choices`, `ratings` or another source")
    read = [path for source in sources for path in source.files]
    read += [path for path in (vectors, vector_ids) if path]
    _spare(read, table_paths.values())
    found = _digests(read)
    for source in sources:
        found |= source.digests
    split = {"by": split_by, "seed": split_seed}
    with (
        folders.scratch_beside(pathlib.Path(out)) as scratch,
        Collector(
            scratch, split_by=split_by, seed=split_seed, keep_rows=bool(table_paths)
        ) as collector,
    ):
        for source in sources:
            _add_rows(collector, source)
        data = collector.dataset()
        advice = collector.advice()
        data = _add_vectors(data, vectors, vector_ids, embedder)
        dataset.write(out, data, sources=found, split=split, overwrite=overwrite)
        _save_tables(table_paths, collector)
    written = dataset.load(out, need_features=False, most_in_memory=0)
    return Prepared(written, reports, [advice] if advice else [])


def _add_rows(collector: Collector, source: Source) -> None:
    collector.add(source.choices)
    collector.add(source.ratings)
    for prompt, answers in source.answers.items():
        collector.add_answers(prompt, answers, splits.SPLITS[0])
    for table in source.tables:
        collector.add_table(*table)
    if source.group_column:
        _check_groups(source.group_column, source.reports)


def summary(prepared: Prepared) -> str:
    """Formats how many rows were read and left out, what was made, and warnings."""
    lines = []
    for report in prepared.reports:
        bad = sum(count for count, _ in report.bad.values())
        lines.append(f"{report.path}: {report.rows:,} rows, {bad:,} left out")
        for reason, (count, first) in report.bad.items():
            lines.append(f"  {count:>9,} {reason} (first in row {first})")
        for what, count in report.notes.items():
            lines.append(f"  {count:>9,} {what}")
    data, counts = prepared.data, dataset.counts(prepared.data)
    items, prompts = len(data.texts), len(data.prompts)
    lines.append(f"{items:,} items of {prompts:,} prompt{'s' * (prompts != 1)}")
    rows = [["", *splits.SPLITS]]
    for title in counts[splits.SPLITS[0]]:
        numbers = [counts[split][title] for split in splits.SPLITS]
        if any(numbers):
            rows.append([title.replace("_", " "), *(f"{n:,}" for n in numbers)])
    lines.append(text_tables.aligned(rows))
    return "\n".join([*lines, *(f"warning: {text}" for text in prepared.warnings)])


def _digests(paths: Iterable[Path]) -> dict[str, str]:
    """Computes the SHA-256 of the paths that are files."""
    files = (path for path in map(pathlib.Path, paths) if path.is_file())
    return {str(file): digests.of_file(file) for file in files}


def _add_vectors(
    data: Dataset, path: Path | None, ids_path: Path | None, embedder: str
) -> Dataset:
    if bool(path) != bool(ids_path):
        raise InputError("`vectors` and `vector_ids`: give both or neither")
    if not path:
        return data
    if data.embedder:
        raise InputError("`vectors`: leave them out, since the options are numbers")
    found = vectors.read(path, ids_path, data.item_ids)
    return dataclasses.replace(
        data,
        features=dataset.check_vectors(found, data.item_ids),
        embedding=dataset.Embedding(embedder or pathlib.Path(path).stem),
    )


def _table_paths(
    tables_out: Path | None, out: Path, overwrite: bool
) -> dict[str, pathlib.Path]:
    """Returns the path of each saved table; refuses to overwrite files."""
    if not tables_out:
        return {}
    folder = pathlib.Path(tables_out)
    if folder.resolve().is_relative_to(pathlib.Path(out).resolve()):
        raise InputError(
            f"`tables_out`={folder}: is in the folder of the dataset, which holds "
            "nothing else; choose another"
        )
    paths = {kind: folder / f"{kind}.jsonl.gz" for kind in ("choices", "ratings")}
    for path in paths.values():
        if path.exists() and not overwrite:
            raise InputError(
                f"{path}: exists; choose another `tables_out` or pass `overwrite`"
            )
    folders.check_writable(folder, "choose another `tables_out`")
    return paths


def _spare(sources: Iterable[Path], written: Iterable[pathlib.Path]) -> None:
    """Raises InputError if a file that was read would be written."""
    read = {pathlib.Path(path).resolve() for path in sources}
    for path in written:
        if path.resolve() in read:
            raise InputError(
                f"{path}: is one of the tables that are read; choose another "
                "`tables_out`"
            )


def _save_tables(paths: Mapping[str, pathlib.Path], collector: Collector) -> None:
    for what, path in paths.items():
        rows = collector.rows(what)
        if (first := next(rows, None)) is not None:
            files.write_jsonl(path, itertools.chain([first], rows))
