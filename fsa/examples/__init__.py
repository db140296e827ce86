"""Small trained runs that are installed with fsa, to try it at once."""

import importlib.resources
import pathlib
import zipfile

from fsa import folders

CUISINES = "cuisines"


def unpack(name: str) -> tuple[str, str]:
    """Unpacks a run into `runs/` of the current folder, unless it is there.

    Args:
      name: of the run.

    Returns:
      The run directory, and where its data are from.

    Raises:
      InputError: if it cannot be written.
    """
    source = importlib.resources.files(__name__)
    workdir = pathlib.Path("runs", name)
    if not workdir.exists():
        with (
            folders.complete_or_absent(workdir) as folder,
            (source / f"{name}.zip").open("rb") as file,
            zipfile.ZipFile(file) as archive,
        ):
            archive.extractall(folder)
    attribution = (source / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    return str(workdir), " ".join(attribution.split())
