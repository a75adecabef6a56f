"""Declared values: frozen dataclasses whose fields say what they may hold.

A field's type says most; `Annotated` adds bounds and a help text::

    @dataclass(frozen=True)
    class Steps(Declared, label="steps"):
        batch_size: Annotated[int, whole(1, 4096), "sequences of a step"] = 8

Making one checks every field; `from_mapping` and `from_json` also refuse unknown and missing names. A refusal is one
line: what is wrong, what is allowed, and the value received. Names have underscores in Python and on the wire, and
hyphens in messages and where people write settings (YAML, Flower's run configuration, the command line).

No library, since pydantic takes 0.2 s to import and its messages several lines, and msgspec's messages leave out the
value received.
"""

import json
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeGuard, Union, get_args, get_origin, get_type_hints

from fedpp.errors import ConfigError, FedppError
from fedpp.texts import suggestion

MAX_WHOLE = 2**63 - 1  # of TOML, and of Flower's records
MAX_TEXT = 2**20  # characters of JSON, unless a class has a bound of its own
MAX_NAMED = 8  # unknown names in a message: others' texts may have thousands
_HYPHENS = str.maketrans("-_", "_-")
_DIGITS = re.compile("[0-9a-f]+")
_NUMBER = re.compile("0|[1-9a-f][0-9a-f]*")


def is_hex(value: object, digits: int = 64) -> TypeGuard[str]:
    """Tell whether a value is a text of so many hexadecimal digits in lower case, by default those of 32 bytes."""
    return isinstance(value, str) and len(value) == digits and _DIGITS.fullmatch(value) is not None


def is_hex_number(value: object, digits: int = 32) -> TypeGuard[str]:
    """Tell whether a value is a number of at most so many hexadecimal digits, the first no zero; by default a tag's."""
    return isinstance(value, str) and len(value) <= digits and _NUMBER.fullmatch(value) is not None


def canonical(values: Mapping[str, Any]) -> bytes:
    """Return the one JSON text of these values, as it is signed, hashed and stored."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def hyphenated(name: str) -> str:
    """Return a field's name as people write it."""
    return name.replace("_", "-")


@dataclass(frozen=True)
class Rule:
    """What a value may be, in words, and the function that returns the value to keep or raises `ValueError`."""

    allowed: str
    accept: Callable[[Any], Any]
    kind: Callable[[str], Any] = str  # reads it from a text of the command line
    choices: tuple[Any, ...] = ()


def rule(allowed: str, fits: Callable[[Any], bool], kind: Callable[[str], Any] = str) -> Rule:
    """Return the rule of values that pass a test and are kept as they are."""

    def accept(value: Any) -> Any:
        if not fits(value):
            raise ValueError(allowed)
        return value

    return Rule(allowed, accept, kind)


def whole(least: int = 0, most: int = MAX_WHOLE) -> Rule:
    """Return the rule of whole numbers within bounds."""
    allowed = f"a whole number of at least {least}" if most == MAX_WHOLE else f"a whole number from {least} to {most}"
    return rule(allowed, lambda value: type(value) is int and least <= value <= most, int)


def number(
    *, above: float | None = None, least: float | None = None, below: float | None = None, most: float | None = None
) -> Rule:
    """Return the rule of finite numbers within bounds; each becomes a float, and -0.0 becomes 0.0."""
    bounds = {"above": above, "of at least": least, "below": below, "of at most": most}
    words = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    low = -sys.float_info.max if least is None else least
    high = sys.float_info.max if most is None else most

    def accept(value: Any) -> float:
        fits = type(value) in {int, float} and low <= value <= high
        if not fits or (above is not None and value <= above) or (below is not None and value >= below):
            raise ValueError(words)
        return float(value) + 0.0

    return Rule(f"a finite number {words}".strip(), accept, float)


def one_of(*choices: Any) -> Rule:
    """Return the rule of a few known values."""
    listed = ", ".join(str(choice) if choice != "" else "nothing" for choice in choices)
    words = "true or false" if choices == (True, False) else f"one of {listed}"
    known = {(type(choice), choice) for choice in choices}
    found = rule(words, lambda value: type(value) in {kind for kind, _ in known} and (type(value), value) in known)
    return Rule(found.allowed, found.accept, type(choices[0]), choices)


def hexadecimal(digits: int = 64) -> Rule:
    """Return the rule of hashes, keys and nonces; in lower case, so that none has two spellings."""
    return rule(f"{digits} hexadecimal digits in lower case", lambda value: is_hex(value, digits))


def text(longest: int) -> Rule:
    """Return the rule of texts that a terminal just shows, of 1 to `longest` characters."""
    allowed = f"a text of 1 to {longest} printable characters"
    return rule(allowed, lambda v: isinstance(v, str) and 0 < len(v) <= longest and v.isprintable())


@dataclass(frozen=True)
class Listed:
    """Bounds of a list: how many items it may have, and whether one may stand twice."""

    least: int = 0
    most: int = MAX_WHOLE
    distinct: bool = False


@dataclass(frozen=True)
class Flat:
    """Marks a part whose fields stand among those of the whole in mappings, under names with a prefix or of their own.

    A whole with `hyperparameters: Annotated[Hyperparameters, Flat()]` is written with `batch_size` at its top level.
    """

    prefix: str = ""
    names: Mapping[str, str] = field(default_factory=dict)

    def outer(self, name: str) -> str:
        """Return the name of a part's field in the whole."""
        return self.names.get(name, self.prefix + name)


@dataclass(frozen=True)
class Declaration:
    """One field as mappings have it: its rule, help and default, and where it is found."""

    rule: Rule
    help: str
    default: Any  # or MISSING
    part: str = ""  # the flat part that has it, or nothing
    name: str = ""  # its name there


class Declared:
    """Base of frozen dataclasses that check their fields; `label` begins their messages, `error` is what they raise.

    `longest` bounds the characters of their JSON.

    Law: `from_mapping(x.to_mapping()) == x`, and `from_json(x.to_json()) == x`.
    """

    _label: ClassVar[str] = ""
    _error: ClassVar[type[FedppError]] = ConfigError
    _hyphens: ClassVar[bool] = False
    _longest: ClassVar[int] = MAX_TEXT

    def __init_subclass__(
        cls,
        *,
        label: str | None = None,
        error: type[FedppError] | None = None,
        hyphens: bool | None = None,
        longest: int | None = None,
    ) -> None:
        super().__init_subclass__()
        cls._longest = cls._longest if longest is None else longest
        cls._label = cls._label if label is None else label
        cls._error = cls._error if error is None else error
        cls._hyphens = cls._hyphens if hyphens is None else hyphens

    def __post_init__(self) -> None:
        """Refuse values that the fields' rules do not allow."""
        for name, (of_field, _, _) in _rules(type(self)).items():
            object.__setattr__(self, name, self._checked(name, of_field, getattr(self, name)))

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make one of all fields by name, those of flat parts among them; raise for unknown and missing names."""
        known = cls.declarations()
        names, unknown = [*map(cls._written, known)], [cls._written(name) for name in values if name not in known]
        wrong = [f"unknown {name!r:.80}{suggestion(name[:80], names)}" for name in unknown[:MAX_NAMED]]
        wrong += [f"{len(unknown) - MAX_NAMED} more unknown names"] if len(unknown) > MAX_NAMED else []
        wrong += [
            f"missing {cls._written(name)}"
            for name, of in known.items()
            if of.default is MISSING and name not in values
        ]
        if wrong:
            raise cls._refused(f"{', '.join(wrong)}; known are {', '.join(sorted(names))}")
        made: dict[str, Any] = {}
        parts: dict[str, dict[str, Any]] = {name: {} for name, (_, flat, _) in _rules(cls).items() if flat}
        for name, value in values.items():
            of = known[name]
            checked = cls._checked(name, of.rule, value)
            (parts[of.part] if of.part else made)[of.name] = checked
        for name, (_, _, kind) in _rules(cls).items():
            if name in parts:
                default = _default(cls, name)
                try:
                    made[name] = kind.of(**parts[name]) if default is MISSING else default.changed(**parts[name])
                except FedppError as error:
                    raise cls._refused(str(error)) from None
        return cls(**made)

    @classmethod
    def declarations(cls) -> Mapping[str, Declaration]:
        """Return all fields by name, those of flat parts among them."""
        kind: Any = cls
        return _declarations(kind)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what JSON, YAML or a record holds; raise the class's error for anything that `to_mapping` cannot say."""
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise cls._refused(f"settings like 'name: value' are needed, got {values!r:.60}")
        return cls.of(**{cls._written(name): value for name, value in values.items()})

    @classmethod
    def from_json(cls, text: Any) -> Self:
        """Read what `to_json` returned; raise the class's error for any other text, and for one that is too long."""
        try:
            values = json.loads(text[: cls._longest])
        except (ValueError, TypeError, RecursionError):
            raise cls._refused("it is damaged, or no JSON: use one fedpp everywhere") from None
        try:
            made = cls.from_mapping(values)
        except RecursionError:  # of a value that is nested almost too deeply to be read, and too deeply to be shown
            raise cls._refused("it is damaged: a value in it is a list of lists without an end") from None
        if made.to_json() != text:
            raise cls._refused("it is damaged: use one fedpp everywhere")
        return made

    def values(self) -> dict[str, Any]:
        """Return the values of all fields by name, those of flat parts among them."""
        found: dict[str, Any] = {}
        for name, (_, flat, _) in _rules(type(self)).items():
            value = getattr(self, name)
            found |= {flat.outer(n): v for n, v in value.values().items()} if flat else {name: value}
        return found

    def changed(self, **values: Any) -> Self:
        """Return a copy with other values of some fields."""
        return self.of(**{**self.values(), **values}) if values else self

    def to_mapping(self) -> dict[str, Any]:
        """Return the values as JSON, YAML and records have them."""
        return {self._written(name): _plain(value) for name, value in self.values().items()}

    def to_json(self) -> str:
        """Return the one line of JSON."""
        return canonical(self.to_mapping()).decode()

    @classmethod
    def _written(cls, name: str) -> str:
        """Return a field's name in mappings, and the other way round."""
        return name.translate(_HYPHENS) if cls._hyphens else name

    @classmethod
    def _refused(cls, reason: str) -> FedppError:
        return cls._error(f"{cls._label}: {reason}")

    @classmethod
    def _checked(cls, name: str, of: Rule, value: Any) -> Any:
        try:
            return of.accept(value)
        except FedppError as error:
            raise cls._refused(str(error)) from None
        except _ItemError as error:
            raise cls._refused(f"{hyphenated(name)}: {error}") from None
        except (ValueError, TypeError):
            raise cls._refused(f"{hyphenated(name)} must be {of.allowed}, got {value!r:.80}") from None


class _ItemError(ValueError):
    """An item of a list is not allowed; the message says which."""


def _rules(cls: Any) -> Mapping[str, tuple[Rule, Flat | None, Any]]:
    """Return each field's rule, whether it is a flat part, and its class where it is a declared one."""
    return _parsed_rules(cls)


@cache
def _parsed_rules(cls: Any) -> Mapping[str, tuple[Rule, Flat | None, Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return {each.name: _parsed(hints[each.name]) for each in fields(cls)}


@cache
def _declarations(cls: Any) -> Mapping[str, Declaration]:
    hints = get_type_hints(cls, include_extras=True)
    found: dict[str, Declaration] = {}
    for name, (of_field, flat, kind) in _rules(cls).items():
        default = _default(cls, name)
        if flat is None:
            found[name] = Declaration(of_field, _help(hints[name]), default, "", name)
            continue
        values = {} if default is MISSING else default.values()
        for inner, of in _declarations(kind).items():
            found[flat.outer(inner)] = Declaration(of.rule, of.help, values.get(inner, of.default), name, inner)
    return found


def _default(cls: Any, name: str) -> Any:
    of = {each.name: each for each in fields(cls)}[name]
    return of.default if of.default_factory is MISSING else of.default_factory()


def _help(hint: Any) -> str:
    return next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, str)), "")


def _parsed(hint: Any) -> tuple[Rule, Flat | None, Any]:
    base, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    flat = next((note for note in notes if isinstance(note, Flat)), None)
    given = next((note for note in notes if isinstance(note, Rule)), None)
    listed = next((note for note in notes if isinstance(note, Listed)), Listed())
    return given or _rule_of(base, listed), flat, base


_TYPES: Mapping[Any, Rule] = {
    bool: one_of(True, False),
    int: whole(-MAX_WHOLE),
    float: number(),
    str: rule("a text", lambda value: isinstance(value, str)),
    Path: Rule("a path", lambda value: Path(value) if value != "" else _fail(), Path),
}


def _rule_of(kind: Any, listed: Listed) -> Rule:
    if get_origin(kind) is Annotated:
        return _parsed(kind)[0]
    if kind in _TYPES:
        return _TYPES[kind]
    if get_origin(kind) is Literal:
        return one_of(*get_args(kind))
    if get_origin(kind) in {Union, types.UnionType}:
        (some,) = (of for of in get_args(kind) if of is not type(None))
        of = _rule_of(some, listed)
        return Rule(f"{of.allowed}, or nothing", lambda v: None if v is None else of.accept(v), of.kind, of.choices)
    if get_origin(kind) is tuple:
        return _list_of(_rule_of(get_args(kind)[0], Listed()), listed)
    if isinstance(kind, type) and issubclass(kind, Declared):
        return Rule(f"{kind._label}", lambda v: v if isinstance(v, kind) else kind.from_mapping(v))  # noqa: SLF001
    raise TypeError(f"no rule for {kind}")


def _list_of(item: Rule, of: Listed) -> Rule:
    """Return the rule of lists; a text such as `16,32` is one of numbers, since Flower's settings have no lists."""
    least = f" of at least {of.least}" if of.least and of.least != of.most else ""
    size = f" of {of.most}" if of.least == of.most else least

    def accept(values: Any) -> tuple[Any, ...]:
        if isinstance(values, str) and item.kind in {int, float}:
            values = list(map(item.kind, values.split(",")))
        if not isinstance(values, list | tuple) or not of.least <= len(values) <= of.most:
            raise ValueError(values)
        accepted = []
        for value in values:
            try:
                accepted.append(item.accept(value))
            except (ValueError, TypeError):
                raise _ItemError(f"each must be {item.allowed}, got {value!r:.80}") from None
            if of.distinct and accepted.count(accepted[-1]) > 1:
                raise _ItemError(f"{value!r:.80} stands twice: leave one of them out")
        return tuple(accepted)

    return Rule(
        f"a list{size}, each {item.allowed}", accept, lambda given: [item.kind(part) for part in given.split(",")]
    )


def _fail() -> Any:
    raise ValueError


def _plain(value: Any) -> Any:
    if isinstance(value, Declared):
        return value.to_mapping()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
