"""Statements of a masked run: the members' signed messages, phase by phase, and the values that follow from them.

Each statement names its purpose, the contract, and its place in the chain of all that its site signs under that
contract: it holds the hash of the statement before. It also names the newest record of the site's audit log, so that a
log that was cut is noticed. A site makes one statement for a purpose and a round, and repeats it byte for byte.

The phases: `accept`, `coin`, `start`; in each round `train`, `release`, `step`; `burn` and `abandon` where a round or a
contract ends without its sum; `report` for a site's own figures, where its contract wants them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Any, Literal, Self, get_args

from fedpp.errors import FederationError
from fedpp.protocol.membership import SITE_NAME, Certificate, Hash, is_signed, is_weak_to_agree
from fedpp.protocol.run_contract import NO_HASH
from fedpp.values import Declared, Rule, canonical, is_hex, is_hex_number, rule, whole

Purpose = Literal["accept", "coin", "start", "train", "release", "step", "burn", "abandon", "report"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
TAG_PRIME = 2**127 - 1  # tags of the linear check are numbers modulo it
MAX_FIGURES = 2**18  # characters of a JSON text of counts

_HASH = rule("64 hexadecimal digits in lower case", is_hex)
_KEY = rule(
    "an X25519 key of 64 hexadecimal digits in lower case, not of small order",
    lambda value: is_hex(value) and not is_weak_to_agree(bytes.fromhex(value)),
)
_TAG = rule(
    "a hexadecimal number below 2^127 - 1 without leading zeros",
    lambda value: is_hex_number(value) and int(value, 16) < TAG_PRIME,
)


def _is_figures(value: object) -> bool:
    """Tell whether a value is the canonical JSON text of a mapping, or nothing."""
    if not isinstance(value, str) or len(value) > MAX_FIGURES:
        return False
    try:
        read = json.loads(value or "{}")
        return value == "" or (isinstance(read, dict) and canonical(read).decode() == value)
    except (ValueError, RecursionError):
        return False


_FIGURES = rule("the canonical JSON of counts, or nothing", _is_figures)

FACTS: Mapping[Purpose, Mapping[str, Rule]] = {
    "accept": {"key": _KEY, "coin_hash": _HASH},  # public key of the run, and the commitment to the coin
    "coin": {"coin": _HASH},
    "start": {"state": _HASH},  # digest of the initial state
    "train": {"masked": _HASH, "seed": _HASH},  # H(y) of the masked update, H(b) of the seed of its own mask
    "release": {"aggregate": _HASH, "tag": _TAG, "sealed": _HASH},  # T, linear check, H(sealed b)
    "step": {"state": _HASH, "counts": _FIGURES},  # digest of the new state, and opened counts of its base
    "burn": {"aggregate": _HASH},  # T, which gets no reply
    "abandon": {},
    "report": {"figures": _FIGURES},  # of the site itself
}
"""The facts of a statement by purpose."""

BEFORE_RUN = frozenset({"accept", "coin", "abandon"})  # they name a contract, and neither run nor round
OF_ROUND = frozenset({"train", "release", "step", "burn"})  # they also name the base state of a round


def _facts(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError
    return dict(value)


@dataclass(frozen=True)
class RunStatement(Declared, label="run statement", error=FederationError):
    """Statement of a site in one phase of a run; `SignedStatement` adds the signature."""

    purpose: Purpose
    contract: Hash  # digest
    run: Hash  # `run_id`; `NO_HASH` before it is known, and where a contract is abandoned
    site: Annotated[str, SITE_NAME]
    place: Annotated[int, whole()]  # in the site's chain of this contract
    previous: Hash  # digest of the statement before; `NO_HASH` at place 0
    log_records: Annotated[int, whole()]  # of the site's audit log, so far
    log_head: Hash  # of its newest record
    round: Annotated[int, whole()]
    base: Hash  # digest of the state that the round starts from, or a coin's revision, if its site knows it; `NO_HASH`
    facts: Annotated[Mapping[str, str], Rule("a mapping of names to texts", _facts)] = field(hash=False)

    def __post_init__(self) -> None:
        """Refuse facts of another purpose, and values that the purpose has no use for."""
        super().__post_init__()
        due = FACTS[self.purpose]
        if self.facts.keys() != due.keys():
            raise self._refused(f"{self.purpose} has the facts {sorted(due)}, got {sorted(self.facts)!r:.80}")
        for name, of in due.items():
            self._checked(name, of, self.facts[name])
        if (self.place == 0) != (self.previous == NO_HASH):
            raise self._refused(f"a chain starts at place 0, without a statement before, got place {self.place}")
        if (self.run == NO_HASH) != (self.purpose in BEFORE_RUN):
            raise self._refused(f"{self.purpose} names {'no' if self.purpose in BEFORE_RUN else 'a'} run")
        if self.purpose in {"accept", "abandon", "start"} and self.base != NO_HASH:
            raise self._refused(f"{self.purpose} names no base state, got {self.base}")
        if self.purpose in BEFORE_RUN and self.round:
            raise self._refused(f"{self.purpose} names no round, got {self.round}")
        if self.purpose in OF_ROUND and (self.base == NO_HASH or not self.round):
            raise self._refused(f"{self.purpose} names a round from 1 and its base state, got round {self.round}")

    def content(self) -> bytes:
        """Return what is signed: the canonical JSON."""
        return self.to_json().encode()

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of what is signed, in hex."""
        return sha256(self.content()).hexdigest()


@dataclass(frozen=True)
class SignedStatement(Declared, label="signed statement", error=FederationError):
    """A statement and the signature of its site."""

    statement: RunStatement
    signature: Annotated[str, rule("128 hexadecimal digits in lower case", lambda value: is_hex(value, 128))]

    @classmethod
    def by(cls, sign: Callable[[str, bytes], str], statement: RunStatement) -> Self:
        """Return the statement as a site identity's `sign` signs it."""
        return cls(statement, sign(signing_purpose(statement), statement.content()))

    @property
    def digest(self) -> str:
        """Return the statement's digest, which the next one of the chain names; two signatures make no second one."""
        return self.statement.digest

    def require(self, certificate: Certificate) -> None:
        """Raise `FederationError` unless the site of this certificate signed it, in its own name, for its purpose."""
        member, statement = certificate.member, self.statement
        content = statement.content()
        if statement.site != member.site or not is_signed(
            member.signing_key, self.signature, signing_purpose(statement), content
        ):
            raise FederationError(f"a statement ({statement.purpose}) of {statement.site} was not signed by that site")


def signing_purpose(statement: RunStatement) -> str:
    """Return the purpose that a statement is signed for."""
    return f"run {statement.purpose}"


def coin_hash(contract: str, site: str, coin: str) -> str:
    """Return a site's commitment to its coin: nobody can choose a coin by those of others, or show theirs again."""
    return sha256(canonical({"coin": coin, "contract": contract, "site": site})).hexdigest()


def require_coin(accepted: SignedStatement, coin: SignedStatement) -> None:
    """Raise `FederationError` unless a site's coin is the one that it committed to."""
    of = coin.statement
    if coin_hash(of.contract, of.site, of.facts["coin"]) != accepted.statement.facts["coin_hash"]:
        raise FederationError(f"the coin of {of.site} is not the one that it committed to")


def run_id(contract: str, accepted: Mapping[str, SignedStatement], coins: Mapping[str, SignedStatement]) -> str:
    """Return the run's name, H(digest of the contract, public keys, coins); raise for a coin that was not committed to.

    Both mappings have the statements of all members, by site.
    """
    _require_purpose("accept", accepted)
    _require_purpose("coin", coins)
    if accepted.keys() != coins.keys():
        raise FederationError(f"a run needs the coins of all {len(accepted)} members, got {len(coins)}")
    for site, coin in coins.items():
        require_coin(accepted[site], coin)
    parts = [
        [site, accepted[site].statement.facts["key"], coins[site].statement.facts["coin"]] for site in sorted(coins)
    ]
    return sha256(canonical({"contract": contract, "members": parts})).hexdigest()


def context(run: str, number: int, base: str) -> bytes:
    """Return the one text of a round, to which its masks and seals are bound: run, round number and base state."""
    if not is_hex(run) or not is_hex(base) or type(number) is not int or number < 1:
        raise FederationError(f"a round has a run, a number from 1 and a base state, got {(run, number, base)!r:.160}")
    return canonical({"base": base, "round": number, "run": run})


def aggregate_id(ctx: bytes, bits: int, length: int, trained: Mapping[str, SignedStatement], sum_hash: str) -> str:
    """Return T: the hash of a round's context, its ring and length, all members' `train` statements and H(S).

    A vault releases its own mask for one T of a context, for ever.
    """
    _require_purpose("train", trained)
    for site, signed in trained.items():
        if context(signed.statement.run, signed.statement.round, signed.statement.base) != ctx:
            raise FederationError(f"the masked update of {site} is for another round, or another base state")
    facts = {site: signed.statement.facts for site, signed in trained.items()}
    parts = [[site, facts[site]["masked"], facts[site]["seed"]] for site in sorted(facts)]
    content = {"bits": bits, "context": ctx.decode(), "length": length, "sum": sum_hash, "updates": parts}
    return sha256(canonical(content)).hexdigest()


def _require_purpose(purpose: Purpose, statements: Mapping[str, SignedStatement]) -> None:
    for site, signed in statements.items():
        if (signed.statement.purpose, signed.statement.site) != (purpose, site):
            raise FederationError(f"a statement {purpose} of {site} is due, got {signed.statement.purpose}")
