"""Certified model: the file `model.sealed` of a masked run, a state sealed by a member, with all that certifies it.

Anybody can see which run and round it is of, and who signed it; only a member's vault can read the weights, and compare
them with what was signed.

Bytes: a container (`fedpp.container`) whose header has the contract, the members' certificates and the state's
certificate, each as JSON, and whose content is the sealed state.
"""

from dataclasses import dataclass
from typing import Self

from fedpp import container
from fedpp.errors import FederationError, ModelError
from fedpp.protocol.membership import Certificate
from fedpp.protocol.run_contract import RunContract
from fedpp.protocol.state_certificate import StateCertificate

FORMAT = "fedpp-model-2"
MAX_HEADER = 2**28  # bytes


@dataclass(frozen=True)
class CertifiedModel:
    """A sealed state of a masked run, its certificate, and the contract and members that the certificate is of."""

    contract: RunContract
    certificates: tuple[Certificate, ...]  # of the members, in the order of their names
    certificate: StateCertificate
    sealed: bytes  # a member's newest state, which is the certified one

    def to_bytes(self) -> bytes:
        """Return the content of the file. Law: `from_bytes(to_bytes())` is equal."""
        facts = {
            "contract": self.contract.to_json(),
            "certificates": [certificate.to_json() for certificate in self.certificates],
            "certificate": self.certificate.to_json(),
        }
        return b"".join(container.parts(FORMAT, facts, self.sealed))

    @classmethod
    def from_bytes(cls, content: container.Content) -> Self:
        """Read what `to_bytes` returned; raise `ModelError` for anything else."""
        try:
            facts, sealed = container.unpack(FORMAT, content, MAX_HEADER)
            return cls(
                RunContract.from_json(facts["contract"]),
                tuple(map(Certificate.from_json, facts["certificates"])),
                StateCertificate.from_json(facts["certificate"]),
                bytes(sealed),
            )
        except (ValueError, KeyError, TypeError, FederationError):
            raise ModelError(
                f"not a certified model of a masked run ({FORMAT}), or damaged: get it from the coordinator again"
            ) from None

    def require(self, ca_key: str) -> None:
        """Raise `FederationError` unless enough members, certified by this domain CA, signed the state.

        The contract's cohort must be large enough, too: a single member could certify whatever it likes by a contract
        with itself.
        """
        self.contract.require()
        self.certificate.require(self.contract, self.contract.certified(self.certificates, ca_key))


def is_certified(content: bytes) -> bool:
    """Tell whether content begins as a certified model's, complete or not."""
    return content.startswith(f"{FORMAT}\n".encode())
