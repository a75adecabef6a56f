"""Colluding member: what a hospital can do that gives the coordinator its keys and its vault's journal."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fedpp.aggregation import pair_masks
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.run_stage import RunStage
from fedpp.key_material import seal, unseal
from fedpp.protocol.run_statements import Purpose, RunStatement, SignedStatement, context
from fedpp.values import canonical

from .laboratory import Hospital
from .relaying_coordinator import Coordinator


@dataclass(frozen=True)
class Colluder:
    """A member's keys in the hands of the run's coordinator."""

    of: Hospital
    run: Coordinator

    def statement(self, purpose: Purpose, number: int, site: str) -> RunStatement:
        """Return what a site signed for a purpose and round."""
        return next(of for of in self._all() if (of.purpose, of.round, of.site) == (purpose, number, site))

    def context(self, number: int) -> bytes:
        """Return the context of a round."""
        of = next(of for of in self._all() if (of.purpose, of.round) == ("train", number))
        return context(of.run, of.round, of.base)

    def own_mask(self, site: str, number: int) -> bytes:
        """Return b_i of a site that released it, which every member of the domain unseals."""
        aggregate = self.statement("release", number, site).facts["aggregate"]
        bound = canonical({"aggregate": aggregate, "context": self.context(number).decode(), "site": site})
        return unseal(self.of.site.domain.derive("run masks"), self.run.sealed[site], bound)

    def pair_key(self, one: str, other: str, number: int) -> bytes:
        """Return the key of the masks of two sites, as far as this member can make it: with its own private key."""
        digest = self.run.digest
        ((sealed,),) = self.of.journal.rows("contracts", "key", digest=digest)
        own = X25519PrivateKey.from_private_bytes(self.of.journal.unseal(sealed, f"key {digest}"))
        public = self.statement("accept", 0, other).facts["key"]
        return pair_masks.pair_key(own, bytes.fromhex(public), self.context(number), *sorted((one, other)))

    def opened(self, number: int) -> EncodedUpdate:
        """Return the sum of a round without the masks, all of which were released."""
        seeds = [self.own_mask(name, number) for name in self.run.contract.names]
        return pair_masks.unmasked(self.run.sum().low, self.run.ring, seeds)

    def updates(self, words: EncodedUpdate, stage: RunStage, weight: int) -> NDArray[np.float64]:
        """Return the update that words of the ring hold, of sites with this weight together."""
        size = self.run.contract.spec.network.parameters() * stage.state.n
        return self.run.ring.decode(words[:size], weight)

    def own_seed(self, number: int) -> bytes:
        """Return the member's own b_i, which it has before the release."""
        name = sha256(self.context(number)).hexdigest()
        ((sealed,),) = self.of.journal.rows("seeds", "seed", context=name)
        return self.of.journal.unseal(sealed, f"seed {name}")

    def released(self, aggregate: str, tag: int, number: int) -> str:
        """Return a statement of release with this tag, and let the run have the sealed b_i of it."""
        bound = canonical({"aggregate": aggregate, "context": self.context(number).decode(), "site": self.of.name})
        sealed = seal(self.of.site.domain.derive("run masks"), self.own_seed(number), bound)
        self.run.sealed[self.of.name] = sealed
        facts = {"aggregate": aggregate, "tag": f"{tag:x}", "sealed": sha256(sealed).hexdigest()}
        return self.signed("release", facts, number)

    def signed(self, purpose: Purpose, facts: Mapping[str, str], number: int, after: str = "") -> str:
        """Return a statement that the member signs without its vault, after the newest that is known or this one."""
        return self.forged(purpose, facts, number, self.of.name, after)

    def forged(self, purpose: Purpose, facts: Mapping[str, str], number: int, site: str, after: str = "") -> str:
        """Return a statement in a site's name, signed by this member."""
        own = [of for of in self._all() if of.site == site]
        last = SignedStatement.from_json(after).statement if after else max(own, key=lambda of: of.place)
        trained = next(of for of in own if of.purpose == "train" and of.round == number)
        statement = RunStatement(
            purpose=purpose,
            contract=self.run.digest,
            run=trained.run,
            site=site,
            place=last.place + 1,
            previous=last.digest,
            log_records=last.log_records,
            log_head=last.log_head,
            round=number,
            base=trained.base,
            facts=facts,
        )
        return SignedStatement.by(self.of.site.identity.sign, statement).to_json()

    def _all(self) -> list[RunStatement]:
        all_of = (SignedStatement.from_json(text).statement for text in self.run.statements)
        return [of for of in all_of if of.contract == self.run.digest]
