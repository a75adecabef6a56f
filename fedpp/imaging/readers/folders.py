"""Lists folders of raw data, and passes none over in silence: a patient whose folder cannot be listed is not lost.

`Path.rglob` and `Path.glob` leave out what they may not list, and folders that are links, and say nothing.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from fedpp.errors import RawDataError
from fedpp.imaging.sequence import Refuse, refuse


def files_below(root: Path, refuse: Refuse = refuse) -> list[Path]:
    """Return the files below a folder, in the order of their paths.

    A folder that cannot be listed, or is a link to one, and a file that cannot be looked at go to `refuse`, and are
    left out if that returns.
    """

    def unlisted(error: OSError) -> None:
        refuse(Path(error.filename), _unlisted(Path(error.filename), error))

    files = []
    for folder, below, names in os.walk(root, onerror=unlisted):
        below.sort()  # what is refused first is the same everywhere
        for link in (Path(folder, name) for name in below):
            if os.path.islink(link):  # noqa: PTH114  False for what may not be looked at, which the walk meets itself
                refuse(link, RawDataError(f"{link} is a link to a folder, which is not followed: put the folder there"))
        files += _files((Path(folder, name) for name in sorted(names)), refuse)
    return sorted(files)


def files_in(folder: Path, refuse: Refuse = refuse) -> list[Path]:
    """Return the files of one folder, and not of those below it; what cannot be listed goes to `refuse`."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        refuse(folder, _unlisted(folder, error))
        return []
    return _files(entries, refuse)


def _files(entries: Iterable[Path], refuse: Refuse) -> list[Path]:
    files = []
    for entry in entries:
        try:
            if entry.is_file():
                files.append(entry)
        except OSError as error:
            refuse(entry, RawDataError(f"cannot look at {entry}: {error.strerror}: check its permissions"))
    return files


def _unlisted(folder: Path, error: OSError) -> RawDataError:
    return RawDataError(f"cannot list the folder {folder}: {error.strerror}: check its permissions")
