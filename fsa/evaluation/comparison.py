"""Puts evaluated runs side by side: one table and one figure."""

import os
import pathlib
from collections.abc import Sequence

from etils import epath

from fsa.errors import InputError
from fsa.evaluation import evaluation_file, figure_style, figures, report


def compare(
    workdirs: Sequence[epath.PathLike],
    out: epath.PathLike | None = None,
    *,
    full: bool = False,
) -> epath.Path:
    """Prints a table of several runs and draws their accuracy.

    Args:
      workdirs: run directories that were evaluated before.
      out: the figure to write; compare.png in the first run directory by default.
      full: whether to print all measures, each with its meaning.

    Returns:
      The path of the figure.

    Raises:
      InputError: for a run that was not evaluated, and for different context sizes.
    """
    runs = {
        name: evaluation_file.read(_evaluation_of(epath.Path(workdir)))
        for name, workdir in zip(distinct_names(workdirs), workdirs, strict=True)
    }
    sizes = {tuple(run["n_context"]) for run in runs.values()}
    if len(sizes) > 1:
        each = (
            f"{name} with {', '.join(map(str, run['n_context']))}"
            for name, run in runs.items()
        )
        raise InputError(
            "`compare`: the runs were scored with different numbers of choices known "
            f"({'; '.join(each)}); train them with one eval.num_context"
        )
    out = epath.Path(out or epath.Path(workdirs[0]) / "compare.png")
    print(report.compare_summary(runs, full=full))
    figure_style.save(figures.accuracy(runs), out)
    print("Written:", out)
    return out


def distinct_names(workdirs: Sequence[epath.PathLike]) -> list[str]:
    """Returns the last parts of folders' paths, as few as tell the folders apart.

    Raises:
      InputError: if a folder is named twice.
    """
    paths = [pathlib.PurePath(os.path.abspath(folder)).parts for folder in workdirs]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise InputError(f"`compare`: {os.path.join(*twice)} is named twice")
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names


def _evaluation_of(workdir: epath.Path) -> epath.Path:
    path = workdir / "evaluation.json"
    if not path.exists():
        raise InputError(f"{path}: no such file; run fsa evaluate --workdir={workdir}")
    return path
