"""Edit the list of approved bundles in a site's policy, and nothing else of its text: comments and order stay."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import yaml

from fedpp.errors import ConfigError
from fedpp.files import rewrite
from fedpp.policy import SitePolicy

KEY = "bundles"


def set_bundle(path: Path, bundle: str, *, approved: bool) -> bool:
    """Add a bundle's hash to the policy's list, or take it out; tell whether the file changed.

    Whoever reads the file meanwhile sees the old one or the new one. Raises `ConfigError` where it is no policy, or
    is written in a way that this does not understand: then nothing is changed.
    """
    path = path.resolve()  # a link stays one
    SitePolicy.load(path)  # before the lock, since it says more of what is missing
    with _locked(path):
        return _set_bundle(path, SitePolicy.load(path), bundle, approved=approved)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from editing a policy meanwhile.

    The lock is a file beside it, since the policy itself is replaced, and for its owner alone: whoever can open what is
    locked can hold the lock, and keep an approval from being withdrawn.
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


def _set_bundle(path: Path, policy: SitePolicy, bundle: str, *, approved: bool) -> bool:
    if (bundle in policy.bundles) == approved:
        return False
    text = path.read_bytes().decode()  # with its line ends
    bundles = (*policy.bundles, bundle) if approved else tuple(other for other in policy.bundles if other != bundle)
    edited = (_with if approved else _without)(text, bundle)
    try:
        understood = SitePolicy.parse(edited) == changed(policy, bundles=bundles)
    except ConfigError:
        understood = False
    if not understood:
        raise ConfigError(f"cannot edit the list of {KEY} in {path}: write one hash a line, each after '- '")
    rewrite(path, edited.encode())
    return True


def _with(text: str, bundle: str) -> str:
    key, items = _list(text)
    if not isinstance(items, yaml.SequenceNode) or (items.flow_style and not items.value):
        empty = items.end_mark.index > items.start_mark.index  # '[]', '~' or nothing at all
        start, end = (items.start_mark.index, items.end_mark.index) if empty else (_colon(text, key),) * 2
        return text[:start].rstrip(" ") + f'{_newline(text)}  - "{bundle}"' + text[end:]
    last = items.value[-1].end_mark.index
    if items.flow_style:
        return f'{text[:last]}, "{bundle}"{text[last:]}'
    line = _end_of_line(text, last)
    return f'{text[:line]}{_newline(text)}{" " * items.start_mark.column}- "{bundle}"{text[line:]}'


def _without(text: str, bundle: str) -> str:
    key, items = _list(text)
    (number,) = (n for n, item in enumerate(items.value) if item.value == bundle)
    item, last = items.value[number], len(items.value) - 1
    if items.flow_style and not last:  # with it goes a comma that may follow
        return f"{text[: items.start_mark.index]}[]{text[items.end_mark.index :]}"
    if items.flow_style:
        start = items.value[number - 1].end_mark.index if number else item.start_mark.index
        end = item.end_mark.index if number else items.value[1].start_mark.index
        return text[:start] + text[end:]
    start = _end_of_line(text, text.rfind("\n", 0, item.start_mark.index))
    without = text[:start] + text[_end_of_line(text, item.end_mark.index) :]
    colon = _colon(text, key)
    return without if last else f"{without[:colon]} []{without[colon:]}"


def _list(text: str) -> tuple[yaml.Node, Any]:
    """Return the nodes of the key and of its value, a sequence or nothing; the text is a policy's."""
    policy: Any = yaml.compose(text, yaml.SafeLoader)
    return next((key, value) for key, value in policy.value if key.value == KEY)


def _colon(text: str, key: yaml.Node) -> int:
    return text.index(":", key.end_mark.index) + 1


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _end_of_line(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end - (text[end - 1 : end] == "\r")
