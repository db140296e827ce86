"""A copy of a folder that is compared, and restored, after each command.

Contents are compared by SHA-256. A file is read again only if its inode, its size or
its times have changed since; the time of a change of an inode cannot be set.
"""

import hashlib
import os
import pathlib
import shutil


class Copy:
    """A copy of a folder.

    Attributes:
      folder: the copy.
    """

    def __init__(self, sound: pathlib.Path, folder: pathlib.Path):
        """Copies the folder `sound` to `folder`, which must be empty or missing."""
        self.folder = folder
        self._sound = sound
        self._read: dict[tuple, str] = {}
        shutil.copytree(sound, folder, symlinks=True, dirs_exist_ok=True)
        self._original = self.contents()

    def contents(self) -> dict[str, str]:
        """Returns what is in the folder: path -> permissions and SHA-256 of contents.

        Folders are listed too, so that a new empty one shows.
        """
        found = {}
        for path in self.folder.rglob("*"):
            status = path.lstat()
            what = f"{status.st_mode:o}"
            if path.is_symlink():
                what += f" {os.readlink(path)}"
            elif path.is_file():
                key = status.st_ino, status.st_size, status.st_mtime_ns
                key += (status.st_ctime_ns,)
                if key not in self._read:
                    content = path.read_bytes()
                    self._read[key] = hashlib.sha256(content).hexdigest()
                what += f" {self._read[key]}"
            found[str(path.relative_to(self.folder))] = what
        return found

    def restore(self) -> None:
        """Makes the folder what it was in the beginning."""
        now = self.contents()
        for name in sorted(now, reverse=True):
            if self._original.get(name) != now[name]:
                path = self.folder / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                # Folders above a lost one are sound, and what was in it is missing.
        now = self.contents()
        for name in sorted(self._original):
            source, path = self._sound / name, self.folder / name
            if name in now:
                continue
            if source.is_dir():
                path.mkdir()
                shutil.copystat(source, path)
            else:
                shutil.copy2(source, path)
        assert self.contents() == self._original


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Returns what differs between two `contents`, such as "lost runs/a"."""
    words = []
    for path in sorted(before.keys() | after.keys()):
        if path not in after:
            words.append(f"lost {path}")
        elif path not in before:
            words.append(f"new {path}")
        elif before[path] != after[path]:
            words.append(f"changed {path}")
    return words
