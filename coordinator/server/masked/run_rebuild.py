"""Rebuild of a masked run whose coordinator lost its folder: the vaults have its contracts and statements.

The nonce names the run. Whatever a site sends is verified before it counts: a contract by its certificates, and by its
members' statements. Masked updates and sealed seeds that were lost are requested again: vaults repeat their replies.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from coordinator.server.admission import Admissions
from coordinator.server.exchange import Exchange
from coordinator.server.run_state import RunState
from fedpp.cipher.domain_card import DomainCard
from fedpp.config.run_config import RunConfig
from fedpp.errors import FederationError
from fedpp.protocol import masked_messages, messages
from fedpp.protocol.membership import Certificate, Run
from fedpp.protocol.run_contract import FRESH, KnownContract, RunContract
from fedpp.protocol.run_spec import RunSpec
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.site_description import SiteDescription
from fedpp.protocol.statement_chains import StatementChains

from .abandonment import GivenUp
from .statement_store import Cohort, StatementStore, take_in_parts

_SETTINGS = ("rounds", "min_honest", "monitor", "patience", "reporting")  # of a contract, beside its run specification


@dataclass
class _Found:
    """A contract that a site knows, and what its members have signed under it."""

    contract: RunContract
    certificates: Mapping[str, Certificate]
    chains: StatementChains = field(init=False)

    def __post_init__(self) -> None:
        self.chains = StatementChains(self.contract, self.certificates)

    @property
    def is_accepted(self) -> bool:
        """Tell whether all members have accepted it, and none has abandoned it."""
        return self.chains.of("accept").keys() >= set(self.contract.names) and not self.chains.of("abandon")


def rebuilt(
    grid: Grid, admissions: Admissions, run: Run, card: DomainCard, config: RunConfig, folder: RunState
) -> Cohort:
    """Return the cohort of the run of a nonce as its sites know it, its statements written to the folder.

    Raises `FederationError` if no site knows it, or it is a run of other settings or of another bundle.
    """
    admissions.wait(config)
    found = _asked(grid, admissions, run, card, config, folder)
    now = _current(found, run.nonce)
    _require_same(now.contract, config, run)
    admissions.wait(config, set(now.contract.names), config.round_seconds)
    proofs = admissions.admitted.participants.proofs
    datasets = {proof.statement.site: proof.statement.dataset for proof in proofs}
    cohort = _cohort(now, found, card.n, datasets)
    at: Cohort | None = cohort
    others = dict(found)
    while at is not None:
        store = StatementStore(folder, at, config.wait_seconds)
        store.add_all(others.pop(at.contract.digest).chains.after({}))
        at = at.parent
    GivenUp(folder).restart(of.contract for of in others.values())
    count = sum(len(of.chains.after({})) for of in found.values())
    folder.note(f"rebuilt from {len(found)} contracts and {count} statements of the vaults")
    return cohort


def _asked(
    grid: Grid, admissions: Admissions, run: Run, card: DomainCard, config: RunConfig, folder: RunState
) -> dict[str, _Found]:
    """Return by digest what the admitted sites know of the run; what does not verify is logged, and left out."""
    sites, exchange = admissions.admitted.sites, Exchange(grid, folder.require_not_stopped)
    content = RecordDict({messages.CONFIG: masked_messages.WhereRequest(run.nonce).to_record()})
    exchange.send([Message(content, dst_node_id=node, message_type=masked_messages.WHERE) for node in sites])
    found: dict[str, _Found] = {}
    replies = []
    for node, reply in exchange.replies(config.round_seconds):
        try:
            replies.append((node, messages.content_of(reply)))
            for text in masked_messages.statements_of(replies[-1][1], masked_messages.CONTRACTS):
                known = KnownContract.from_json(text)
                if known.contract.nonce == run.nonce and known.contract.digest not in found:
                    certificates = known.contract.certified(known.certificates, card.ca_key)
                    found[known.contract.digest] = _Found(known.contract, certificates)
        except FederationError as error:
            folder.note(f"what {sites[node].name} knows of the run: {error}")
    for node, known_there in replies:
        try:
            _take(masked_messages.statements_of(known_there), found)
        except FederationError as error:
            folder.note(f"what {sites[node].name} knows of the run: {error}")
    return found


def _take(texts: Sequence[str], found: Mapping[str, _Found]) -> None:
    """Verify statements and keep them with their contracts."""
    signed = [SignedStatement.from_json(text) for text in texts]
    for digest, of in found.items():
        take_in_parts(of.chains, [each for each in signed if each.statement.contract == digest])


def _current(found: Mapping[str, _Found], nonce: str) -> _Found:
    """Return the contract that the run continues under: the last revision that all its members have accepted.

    A run of which none is accepted by all has not started: it continues with the contract that most have accepted.
    """
    accepted = [of for of in found.values() if of.is_accepted]
    first = [of for of in found.values() if not of.contract.revision]
    candidates = accepted or first
    if not candidates:
        raise FederationError(
            f"no site that is connected knows a run of nonce {nonce}: a hospital's audit log has the right one"
        )
    return max(candidates, key=lambda of: (of.contract.revision, len(of.chains.after({})), of.contract.digest))


def _cohort(of: _Found, found: Mapping[str, _Found], n: int, datasets: Mapping[str, str]) -> Cohort:
    """Return the cohort of a contract, with those that it revises; raise `FederationError` if one is missing."""
    contract, parent = of.contract, None
    if contract.parent is not None:
        if contract.parent.contract not in found:
            raise FederationError(
                f"no site that is connected knows contract {contract.parent.contract[:16]}, which the run continues: "
                "let the sites join that were in it"
            )
        parent = _cohort(found[contract.parent.contract], found, n, datasets)
    spec = contract.spec
    sites = tuple(
        SiteDescription(member.site, spec.domain, n, spec.task, member.sequences, member.patients)
        for member in contract.cohort
    )
    known = {name: datasets[name] for name in contract.names if name in datasets}
    return Cohort(contract, tuple(of.certificates[name] for name in contract.names), sites, known, parent)


def _require_same(contract: RunContract, config: RunConfig, run: Run) -> None:
    """Raise `FederationError` unless the run is that of these settings and of this bundle."""
    if contract.bundle != run.bundle:
        raise FederationError(
            f"the run is of app bundle {contract.bundle[:16]}, this one is {run.bundle[:16]}: rebuild it with the "
            "version of fedpp that it was started with"
        )
    for name, stated, given in _compared(contract, config):
        if stated != given:
            raise FederationError(
                f"the run was started with {name} {stated!r:.80}, got {given!r:.80}: give the settings of its start"
            )


def _compared(contract: RunContract, config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield each setting of a contract, its value there and in this configuration."""
    spec, facts = contract.spec, {"sites": contract.spec.sites, "examples": contract.spec.examples}
    given = RunSpec.of_settings(config, spec.domain, spec.task, masked=True).changed(**facts)
    stated = json.loads(spec.to_json())
    yield from ((name.replace("_", "-"), stated[name], of) for name, of in json.loads(given.to_json()).items())
    yield from ((name.replace("_", "-"), getattr(contract, name), getattr(config, name)) for name in _SETTINGS)
    yield "initial-model", contract.initial, config.initial_model or FRESH
