"""Listing of raw data folders that reports every folder it cannot list, so that no patient is lost silently.

`Path.rglob` and `Path.glob` silently skip folders that they may not list, and links to folders.
"""

import os
from collections.abc import Iterable
from itertools import filterfalse
from pathlib import Path

from fedpp.errors import NoImageError, UnusableFileError
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import Refuse, refuse

# Files and folders that desktop systems, storage servers and notebooks make, beside names that begin with a dot.
# fmt: off
_HIDDEN = frozenset((
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found",
    "system volume information",
))
# fmt: on


def files_below(root: Path, refuse: Refuse = refuse) -> list[Path]:
    """Return the files below a folder, in the order of their paths.

    A folder that cannot be listed, a link to a folder, and a file that cannot be accessed go to `refuse`, and are
    skipped if that returns. Hidden folders are left out: what they hold is no patient's.
    """

    def unlisted(error: OSError) -> None:
        refuse(Path(error.filename), _unlisted(Path(error.filename), error))

    files = []
    for folder, below, names in os.walk(root, onerror=unlisted):
        below[:] = sorted(filterfalse(is_hidden, below))  # the first refused path is the same on every machine
        for link in (Path(folder, name) for name in below):
            if os.path.islink(link):  # noqa: PTH114  False for what may not be accessed, which the walk reports itself
                refuse(link, _link(link, root))
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


def everything_below(root: Path, refuse: Refuse) -> list[Path]:
    """Return what is below a folder and is no folder: files, links, pipes; what cannot be listed goes to `refuse`."""

    def unlisted(error: OSError) -> None:
        refuse(Path(error.filename), _unlisted(Path(error.filename), error))

    found = []
    for folder, below, names in os.walk(root, onerror=unlisted):
        links = [name for name in below if os.path.islink(f"{folder}/{name}")]  # noqa: PTH114  as above
        found += [Path(folder, name) for name in (*links, *names)]
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden by its name, or made by a system for itself."""
    return name.startswith(".") or name.lower() in _HIDDEN


def leads_inside(link: Path, root: Path) -> bool:
    """Tell whether a link leads to a folder below `root`, which is read there."""
    try:
        return link.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a circle of links
        return False


def _link(link: Path, root: Path) -> UnusableFileError:
    if leads_inside(link, root):
        message = f"{link} is a link to a folder of {root}, which is read where it is"
        return NoImageError(message, Reason.LINK_INSIDE)
    return UnusableFileError(f"{link} is a link to a folder, which is not followed: put the folder there", Reason.LINK)


def _files(entries: Iterable[Path], refuse: Refuse) -> list[Path]:
    files = []
    for entry in entries:
        try:
            if entry.is_file():
                files.append(entry)
            elif entry.is_symlink() and not entry.exists():
                message = f"{entry} is a link to nothing: put the file there, or remove the link"
                refuse(entry, UnusableFileError(message, Reason.DANGLING))
        except OSError as error:
            message = f"cannot access {entry}: {error.strerror}: check its permissions"
            refuse(entry, UnusableFileError(message, Reason.CLOSED))
    return files


def _unlisted(folder: Path, error: OSError) -> UnusableFileError:
    message = f"cannot list the folder {folder}: {error.strerror}: check its permissions"
    return UnusableFileError(message, Reason.CLOSED)
