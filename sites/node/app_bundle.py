"""App bundle (FAB): the zip of code that Flower ships from the coordinator to a site, read as untrusted input.

`fedpp-site review` and the launcher unpack a bundle by the same function, so that no archive shows one thing to its
reviewer and another to Python. Names, kinds and sizes are checked before anything is written.
"""

import stat
import struct
import sys
import tokenize
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path, PurePosixPath

from fedpp.errors import FederationError
from fedpp.files import read_file, replace
from fedpp.texts import INVISIBLE
from fedpp.values import is_hex

MAX_BYTES = 16 * 2**20  # of a bundle; Flower's own limit is 10 MiB
MAX_FILES = 2000
MAX_PATH_LENGTH = 200
MAX_UNPACKED = 64 * 2**20
MAX_KEPT = 8  # refused bundles
SUFFIX = ".fab"
_UNSEEN = {"Cc", "Cf", "Zl", "Zp"}  # Unicode's controls, formats (which reorder or hide text), line separators
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What Flower puts into a bundle (flwr.common.constant.FAB_INCLUDE_PATTERNS, flwr.cli.build): nothing else is needed.
_SUFFIXES = {".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl"}
_WITHOUT_SUFFIX = {"LICENSE", ".info/CONTENT"}
_CUSTOMIZING = {"sitecustomize", "usercustomize"}  # Python imports them by itself when it starts


@dataclass(frozen=True)
class Bundle:
    """An app bundle, as received."""

    content: bytes

    @classmethod
    def load(cls, path: Path) -> "Bundle":
        """Read a bundle from a file; raise `FederationError` if it is too large, or another than its name says."""
        try:
            content = read_file(path, MAX_BYTES + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise FederationError(f"cannot read {path}: {error.strerror}; name an app bundle, BUNDLE{SUFFIX}") from None
        if len(content) > MAX_BYTES:
            raise FederationError(f"{path} is larger than {MAX_BYTES} bytes: no app bundle is")
        bundle = cls(content)
        if is_hex(path.stem) and path.stem != bundle.hash:  # what is approved by its name must be what is read
            raise FederationError(f"{path} is another bundle than its name says, {bundle.hash}: do not approve it")
        return bundle

    @property
    def hash(self) -> str:
        """Return the SHA-256 of all of its bytes, 64 hexadecimal digits."""
        return sha256(self.content).hexdigest()

    def files(self) -> dict[str, bytes]:
        """Return the files in it by name; raise `FederationError` for entries that no bundle needs."""
        try:
            with zipfile.ZipFile(BytesIO(self.content)) as archive:
                return self._files(archive)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise self._refused(f"is no whole zip archive ({error})") from None
        except (ValueError, OSError, zlib.error, struct.error) as error:  # of damaged archives
            raise self._refused(f"cannot be read ({error})") from None

    def modules(self) -> set[str]:
        """Return the top-level modules in it; they shadow others, since its folder comes first on `sys.path`."""
        return {_module(PurePosixPath(name)) for name in self.files() if name.endswith(".py")}

    def unpack(self, folder: Path) -> None:
        """Write its files into an empty folder; raise `FederationError`, before it writes, if one is unsafe."""
        for name, content in self.files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(content)

    def keep(self, folder: Path) -> Path:
        """Keep it for review as HASH.fab, mode 0600, among the newest few; return the path.

        Raises `FederationError` if it is too large for a review.
        """
        if len(self.content) > MAX_BYTES:
            raise self._refused(f"is larger than {MAX_BYTES} bytes")
        path = folder / f"{self.hash}{SUFFIX}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace(path, self.content)  # also over a file of this name, which somebody else may have put there
        kept = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: (file != path, -file.stat().st_mtime_ns))
        for oldest in kept[MAX_KEPT:]:
            oldest.unlink(missing_ok=True)
        return path

    def _files(self, archive: zipfile.ZipFile) -> dict[str, bytes]:
        entries = archive.infolist()
        if len(entries) > MAX_FILES:
            raise self._refused(f"holds {len(entries)} files, at most {MAX_FILES} are read")
        files: dict[str, bytes] = {}
        left = MAX_UNPACKED
        for entry in entries:
            self._require_plain(entry)
            if entry.filename in files:
                raise self._refused(f"holds {entry.filename!r:.100} twice")
            with archive.open(entry) as file:
                files[entry.filename] = file.read(left + 1)
            left -= len(files[entry.filename])
            if left < 0:
                raise self._refused(f"unpacks to more than {MAX_UNPACKED} bytes")
            if problem := _unreadable(entry.filename, files[entry.filename]):
                raise self._refused(f"holds {entry.filename!r:.100}, which {problem}")
        folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
        if both := sorted(folders & set(files)):
            raise self._refused(f"holds {both[0]!r:.100} as a file and as a folder")
        return files

    def _require_plain(self, entry: zipfile.ZipInfo) -> None:
        name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
        path = PurePosixPath(name)
        if name != entry.filename:
            raise self._refused(f"holds a file with two names, {name!r:.100} and {entry.filename!r:.100}")
        if path.is_absolute() or ".." in path.parts:
            raise self._refused(f"holds a file outside of its folder, {name!r:.100}")
        if str(path) != name or not path.parts or not name.isprintable() or "\\" in name or len(name) > MAX_PATH_LENGTH:
            raise self._refused(f"holds a file with the name {name!r:.100}")
        if "__pycache__" in path.parts or (path.suffix not in _SUFFIXES and name not in _WITHOUT_SUFFIX):
            raise self._refused(f"holds {name!r:.100}, a kind of file that Flower puts into none")
        if path.suffix == ".py" and _module(path) in sys.stdlib_module_names | _CUSTOMIZING:
            raise self._refused(f"holds {name!r:.100}, which would stand in for Python's own {_module(path)!r:.40}")
        if kind not in (0, stat.S_IFREG):
            raise self._refused(f"holds {name!r:.100}, which is a link or another special file")
        if entry.flag_bits & 1 or entry.compress_type not in _METHODS:
            raise self._refused(f"holds {name!r:.100} encrypted or in an unusual compression")

    def _refused(self, reason: str) -> FederationError:
        return FederationError(f"bundle {self.hash} {reason}: do not approve it")


def _unreadable(name: str, content: bytes) -> str:
    """Return why people and programs could read a text file differently, or an empty text."""
    if name.endswith(".py"):
        try:
            encoding, _ = tokenize.detect_encoding(BytesIO(content).readline)
        except SyntaxError:
            return "declares an unknown encoding"
        if encoding not in {"utf-8", "utf-8-sig"}:
            return f"is encoded in {encoding:.40}, not in UTF-8: a reader sees other code than Python"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    for character in set(text.replace("\r\n", "\n")) - {"\n", "\t"}:
        if unicodedata.category(character) in _UNSEEN:
            return f"holds the character U+{ord(character):04X}, by which a reader sees other text than a program"
    if name.endswith(".py") and (found := INVISIBLE.search(text)):  # some are letters, of which a name may consist
        return f"holds the character U+{ord(found[0]):04X}, which a reader does not see"
    return ""


def _module(path: PurePosixPath) -> str:
    """Return the top-level module of a source file of a bundle."""
    return path.parts[0].removesuffix(".py")
