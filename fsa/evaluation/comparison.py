"""Puts evaluated runs side by side: one table and one plot."""

from collections.abc import Sequence

from etils import epath

from fsa.errors import InputError
from fsa.evaluation import evaluation_file, report


def compare(
    workdirs: Sequence[epath.PathLike], out: epath.PathLike | None = None
) -> epath.Path:
    """Prints a table of several runs and draws their accuracy.

    Args:
      workdirs: run directories that were evaluated before.
      out: the plot to write; compare.png in the first run directory by default.

    Returns:
      The path of the plot.

    Raises:
      InputError: for a run that was not evaluated, and for different context sizes.
    """
    runs = {}
    for workdir in map(epath.Path, workdirs):
        path = workdir / "evaluation.json"
        if not path.exists():
            raise InputError(
                f"{path}: no such file; run fsa evaluate --workdir={workdir}"
            )
        runs[workdir.name] = evaluation_file.read(path)
    sizes = {tuple(run["n_context"]) for run in runs.values()}
    if len(sizes) > 1:
        raise InputError(f"`compare`: the runs have different context sizes: {sizes}")
    out = epath.Path(out or epath.Path(workdirs[0]) / "compare.png")
    print(report.compare_table(runs))
    report.plot_accuracy(runs, out)
    print("Written:", out)
    return out
