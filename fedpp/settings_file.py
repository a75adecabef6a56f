"""Settings files: YAML of a flat kind, for site policies, scenarios and run configurations.

What people read is what counts: a key that stands twice is refused, and so are tags, anchors, merges and the numbers of
YAML 1.1 that look like others (010 is no octal, 1:30 no number of minutes).
"""

import re
from pathlib import Path
from typing import Any

import yaml

from fedpp.errors import ConfigError
from fedpp.files import read_file

MAX_BYTES = 2**20
_LONGEST = 2000  # characters of a value; Python refuses to write out a number of thousands of digits


def load_settings(path: Path, what: str, advice: str = "name a file that this user can read") -> dict[str, Any]:
    """Read a file of settings, called `what` in messages; raise `ConfigError` for anything that is not one."""
    try:
        content = read_file(path, MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"there is no {what} {path}: {advice}") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the {what} {path}: {error.strerror}; it must be a file that this user can read"
        ) from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"the {what} {path} is larger than {MAX_BYTES} bytes: is it the right file?")
    try:
        return parse_settings(content.decode(), what, advice)
    except UnicodeDecodeError as error:
        raise ConfigError(f"the {what} {path} is not UTF-8 at byte {error.start}: save it so") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_settings(text: str, what: str, advice: str = "write settings like 'name: value'") -> dict[str, Any]:
    """Read the text of a file of settings; raise `ConfigError` for anything that is not one."""
    try:
        values = yaml.load(text, _Loader)  # noqa: S506  it is a SafeLoader
    except RecursionError:
        raise ConfigError(f"the {what} is nested too deep: it is a flat list of settings") from None
    except ConfigError as error:
        raise ConfigError(f"the {what}'s {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        reason = "".join(filter(str.isprintable, " ".join(str(error).split())))
        raise ConfigError(f"the {what} is not YAML: {reason}") from None
    if values is None:
        raise ConfigError(f"the {what} is empty: {advice}")
    if not isinstance(values, dict):
        raise ConfigError(f"the {what} must be settings like 'name: value', got {values!r:.60}")
    for name in values:
        if not isinstance(name, str):
            raise ConfigError(f"the {what} does not fit: unknown {name!r:.40}; names are texts")
    return values


class _Loader(yaml.SafeLoader):
    """YAML's safe loader without what a flat list of settings has no use for.

    PyYAML calls by a value's tag what expects a value of that kind, and fails in many ways on another one.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # types-PyYAML has it without types
        line = event.start_mark.line + 1
        if event.anchor is not None or getattr(event, "tag", None) is not None:
            raise ConfigError(f"line {line} holds a tag, an anchor or an alias ('!', '&', '*'): leave it out")
        if len(getattr(event, "value", "")) > _LONGEST:
            raise ConfigError(f"line {line} holds a value of over {_LONGEST} characters: none is so long")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  PyYAML's signature
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.YAMLError(f"{twice!r:.40} stands twice: leave one of them out")
        if "<<" in names:
            raise yaml.YAMLError("'<<' merges settings: write each where it belongs")
        return super().construct_mapping(node, deep)


# As YAML 1.2 has it: 010 is no octal, and 1:30 no number of minutes, to whoever reads the file.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?(?:0|[1-9][0-9]*)$"), list("-0123456789"))
