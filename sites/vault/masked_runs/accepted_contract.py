"""Accepted contract: a run contract that this site signed, and the chains of what all its members have signed since."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

from fedpp.config.contract_limits import MAX_DAYS
from fedpp.errors import FederationError, ForkError, VaultError
from fedpp.protocol.membership import Certificate
from fedpp.protocol.run_contract import NO_HASH, CohortMember, RunContract
from fedpp.protocol.run_statements import Purpose, RunStatement, SignedStatement
from fedpp.protocol.state_certificate import StateCertificate
from fedpp.protocol.statement_chains import StatementChains

from . import run_refusals
from .run_site import JournalSite, noted, refused

ACTIVE, ENDED, ABANDONED, SUCCEEDED, RESTORED = "", "ended", "abandoned", "succeeded", "restored"


class AcceptedContract:
    """One contract in the journal; other members' statements are verified once, and stored before they count."""

    def __init__(self, of: JournalSite, contract: RunContract, certificates: Mapping[str, Certificate]) -> None:
        """Read the statements that are stored."""
        self._of, self.contract, self.certificates = of, contract, certificates
        self._read: dict[str, SignedStatement] = {}  # stored since the start, by their texts
        self.chains = self._stored()

    @classmethod
    def load(cls, of: JournalSite, digest: str) -> "AcceptedContract":
        """Return the contract of this digest; raise `VaultError` if this site has not accepted it."""
        if digest not in of.contracts:
            row = of.journal.row("contracts", "text, certificates", digest=digest)
            if row is None:
                raise VaultError(run_refusals.NO_CONTRACT)
            certificates = [Certificate.from_json(text) for text in json.loads(row[1])]
            by_name = {each.member.site: each for each in certificates}
            of.contracts[digest] = cls(of, RunContract.from_json(row[0]), by_name)
        known: AcceptedContract = of.contracts[digest]
        return known

    @property
    def digest(self) -> str:
        """Return the contract's digest."""
        return self.contract.digest

    @property
    def own(self) -> CohortMember:
        """Return the contract's entry of this site."""
        return self.contract.member(self._of.name)

    @cached_property
    def origin(self) -> str:
        """Return the nonce of the first contract of the run that this site knows; its revisions share what it made."""
        nonce, parent = self.contract.nonce, self.contract.parent.contract if self.contract.parent else ""
        while row := self._of.journal.row("contracts", "nonce, parent", digest=parent):
            nonce, parent = row
        return nonce

    @cached_property
    def run(self) -> str:
        """Return the run's name, once all coins are known."""
        return self.chains.run_id()

    @property
    def ended(self) -> str:
        """Return how the contract ended here, or nothing."""
        (ended,) = self._of.journal.row("contracts", "ended", digest=self.digest) or (ENDED,)
        return str(ended)

    def require_active(self) -> None:
        """Raise `VaultError` for a contract that this site has left, or whose run has ended here."""
        if self.ended == RESTORED:
            raise VaultError(run_refusals.RESTORED)
        if self.ended in {ABANDONED, SUCCEEDED}:
            raise VaultError(run_refusals.OVER)
        self.contract.require_current(self._of.now(), MAX_DAYS)

    def read(self, text: str) -> SignedStatement:
        """Parse a statement; one that is stored already, as most of a request are, is not parsed again."""
        return self._read.get(text) or SignedStatement.from_json(text)

    def require_unsucceeded(self) -> None:
        """Raise `VaultError` if this site revealed its coin in a revision, and has not abandoned that."""
        for ended, started in self._of.journal.rows("contracts", "ended, started", parent=self.digest):
            if started is not None and ended != ABANDONED:
                raise VaultError(run_refusals.OVER)

    def take(self, signed: Sequence[SignedStatement]) -> None:
        """Verify and store statements of the members; raise `FederationError` or `VaultError` if one is refused."""
        self._require_own(signed)
        try:
            new = self.chains.take(signed)
        except ForkError as fork:
            self._keep_proof(fork)
            raise
        if new:
            with self.writing():
                for each in new:
                    self._insert(each)

    @property
    def forked(self) -> set[str]:
        """Return the sites that signed two statements of which they may sign one."""
        return {site for (site,) in self._of.journal.rows("forks", "site", contract=self.digest)}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write to the journal; after a failure the statements are read from it again."""
        try:
            with self._of.journal.writing():
                yield
        except BaseException:
            self.chains = self._stored()
            raise

    def mine(self, purpose: Purpose, number: int = 0) -> SignedStatement | None:
        """Return this site's own statement of a purpose and round, or None."""
        return self.chains.of(purpose, number).get(self._of.name)

    def sign(
        self,
        purpose: Purpose,
        facts: Mapping[str, str],
        *,
        run: str = NO_HASH,
        number: int = 0,
        base: str = NO_HASH,
    ) -> str:
        """Sign and store the site's next statement, within `writing`; return its JSON."""
        last = self.chains.newest(self._of.name)
        records, head = self._of.log_head()
        statement = RunStatement(
            purpose=purpose,
            contract=self.digest,
            run=run,
            site=self._of.name,
            place=self.chains.places[self._of.name],
            previous=last.digest if last else NO_HASH,
            log_records=records,
            log_head=head,
            round=number,
            base=base,
            facts=facts,
        )
        signed = SignedStatement.by(self._of.site.identity.sign, statement)
        self._insert(signed)
        self.chains.take([signed])
        return signed.to_json()

    def certificate(self, number: int) -> StateCertificate:
        """Return the certificate of a round's state; raise `FederationError` if too few members signed it."""
        first = number == self.contract.start_round
        signed = self.chains.all_of("start", number) if first else self.chains.of("step", number)
        return StateCertificate.made_of(self.contract, signed.values())

    def end(self, how: str) -> None:
        """Note how the contract ended here, within `writing`."""
        self._of.journal.update("contracts", {"ended": how}, digest=self.digest)

    def _require_own(self, signed: Sequence[SignedStatement]) -> None:
        """Refuse statements of this site itself that its journal has not: it is older than they are, or a copy."""
        places, known = self.chains.places, {each.digest for each in self.chains.after({})}
        for each in signed:
            of = each.statement
            if of.site == self._of.name and of.contract == self.digest and each.digest not in known:
                each.require(self.certificates[self._of.name])
                with self.writing():
                    self.end(RESTORED)
                raise refused(
                    run_refusals.RESTORED, f"{self.digest[:16]}: signed place {of.place}, known {places[of.site]}"
                )

    def _keep_proof(self, fork: ForkError) -> None:
        """Store two statements that prove that a site is no honest one, or was copied."""
        noted(f"{self.digest[:16]}: {fork}")
        if fork.site not in self.forked:
            with self.writing():
                one, other = fork.proof
                self._of.journal.insert("forks", contract=self.digest, site=fork.site, one=one, other=other)

    def _insert(self, signed: SignedStatement) -> None:
        of, text = signed.statement, signed.to_json()
        self._of.journal.insert("statements", contract=self.digest, site=of.site, place=of.place, text=text)
        self._read[text] = signed

    def _stored(self) -> StatementChains:
        rows = self._of.journal.rows("statements", "text", "site, place", contract=self.digest)
        try:
            signed = [SignedStatement.from_json(text) for (text,) in rows]
            return StatementChains.restored(self.contract, self.certificates, signed)
        except FederationError as error:
            raise VaultError(f"the journal of runs is damaged: {error}") from None
