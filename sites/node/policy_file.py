"""Editor of a site's policy file: changes a list of bundles or datasets, and keeps comments, order and style."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, Literal

import yaml

from fedpp.config.site_policy import SitePolicy
from fedpp.errors import ConfigError
from fedpp.files import rewrite

List = Literal["bundles", "datasets"]


def set_listed(path: Path, name: List, item: str, *, approved: bool) -> bool:
    """Add a hash to one of the policy's lists, or remove it; return whether the file changed.

    A concurrent reader sees the old file or the new one. Raises `ConfigError`, and changes nothing, if the file is no
    policy or is written in a style that this editor does not understand.
    """
    path = path.resolve()  # a link stays one
    SitePolicy.load(path)  # before the lock: its messages are clearer
    with _locked(path):
        return _set(path, SitePolicy.load(path), name, item, approved=approved)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a policy against edits by other processes.

    The lock is a file beside it, since the policy itself is replaced, and for its owner alone: anybody who can
    open the locked file can hold the lock, and keep an approval from being withdrawn.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path.with_name(f".{path.name}.lock"), flags, 0o600)
    try:
        if os.geteuid() == 0:
            os.fchown(descriptor, path.stat().st_uid, -1)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _set(path: Path, policy: SitePolicy, name: List, item: str, *, approved: bool) -> bool:
    listed: tuple[str, ...] = getattr(policy, name)
    if (item in listed) == approved:
        return False
    if name == "datasets" and not approved and len(listed) == 1:
        raise ConfigError(f"{path} lists no other of its {name}, and needs one: add the other first")
    text = path.read_bytes().decode()  # with its line ends
    items = (*listed, item) if approved else tuple(other for other in listed if other != item)
    wanted = changed(policy, bundles=items) if name == "bundles" else changed(policy, datasets=items)
    edited = (_with if approved else _without)(text, name, item)
    try:
        understood = SitePolicy.parse(edited) == wanted
    except ConfigError:
        understood = False
    if not understood:
        raise ConfigError(f"cannot edit the list of {name} in {path}: write one hash a line, each after '- '")
    rewrite(path, edited.encode())
    return True


def _with(text: str, name: List, item: str) -> str:
    key, items = _list(text, name)
    if not isinstance(items, yaml.SequenceNode) or (items.flow_style and not items.value):
        empty = items.end_mark.index > items.start_mark.index  # '[]', '~' or nothing at all
        start, end = (items.start_mark.index, items.end_mark.index) if empty else (_colon(text, key),) * 2
        return text[:start].rstrip(" ") + f'{_newline(text)}  - "{item}"' + text[end:]
    last = items.value[-1].end_mark.index
    if items.flow_style:
        return f'{text[:last]}, "{item}"{text[last:]}'
    line = _end_of_line(text, last)
    return f'{text[:line]}{_newline(text)}{" " * items.start_mark.column}- "{item}"{text[line:]}'


def _without(text: str, name: List, item: str) -> str:
    key, items = _list(text, name)
    (number,) = (n for n, node in enumerate(items.value) if node.value == item)
    found, last = items.value[number], len(items.value) - 1
    if items.flow_style and not last:  # removes a comma that may follow, too
        return f"{text[: items.start_mark.index]}[]{text[items.end_mark.index :]}"
    if items.flow_style:
        start = items.value[number - 1].end_mark.index if number else found.start_mark.index
        end = found.end_mark.index if number else items.value[1].start_mark.index
        return text[:start] + text[end:]
    start = _end_of_line(text, text.rfind("\n", 0, found.start_mark.index))
    without = text[:start] + text[_end_of_line(text, found.end_mark.index) :]
    colon = _colon(text, key)
    return without if last else f"{without[:colon]} []{without[colon:]}"


def _list(text: str, name: List) -> tuple[yaml.Node, Any]:
    """Return the nodes of the key and of its value, a sequence or nothing, in the text of a policy."""
    policy: Any = yaml.compose(text, yaml.SafeLoader)
    return next((key, value) for key, value in policy.value if key.value == name)


def _colon(text: str, key: yaml.Node) -> int:
    return text.index(":", key.end_mark.index) + 1


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _end_of_line(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end - (text[end - 1 : end] == "\r")
