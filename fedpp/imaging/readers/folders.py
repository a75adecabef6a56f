"""Listing of raw data folders that reports every folder it cannot list, so that no patient is lost silently.

`Path.rglob` and `Path.glob` silently skip folders that they may not list, and links to folders.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from fedpp.errors import UnusableFileError
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import Refuse, refuse


def files_below(root: Path, refuse: Refuse = refuse) -> list[Path]:
    """Return the files below a folder, in the order of their paths.

    A folder that cannot be listed, a link to a folder, and a file that cannot be accessed go to `refuse`, and are
    skipped if that returns.
    """

    def unlisted(error: OSError) -> None:
        refuse(Path(error.filename), _unlisted(Path(error.filename), error))

    files = []
    for folder, below, names in os.walk(root, onerror=unlisted):
        below.sort()  # so that the first refused path is the same on every machine
        for link in (Path(folder, name) for name in below):
            if os.path.islink(link):  # noqa: PTH114  False for what may not be accessed, which the walk reports itself
                message = f"{link} is a link to a folder, which is not followed: put the folder there"
                refuse(link, UnusableFileError(message, Reason.LINK))
        files += _files((Path(folder, name) for name in sorted(names)), refuse)
    return sorted(files)


def files_in(folder: Path, refuse: Refuse = refuse) -> list[Path]:
    """Return the files of one folder, not of those below it; what cannot be listed goes to `refuse`."""
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
            message = f"cannot access {entry}: {error.strerror}: check its permissions"
            refuse(entry, UnusableFileError(message, Reason.CLOSED))
    return files


def _unlisted(folder: Path, error: OSError) -> UnusableFileError:
    message = f"cannot list the folder {folder}: {error.strerror}: check its permissions"
    return UnusableFileError(message, Reason.CLOSED)
