"""Endorsements: models that this hospital lets a run start from, states at which it joins one, and locks that it lifts.

`fedpp-site endorse` writes them beside the journal, signed by the site's identity; the running vault reads them. So
nobody outside the hospital chooses the weights that its data are computed with: without an endorsement of its own a
vault takes part in runs from fresh weights alone.

::

    FOLDER/endorsed/DIGEST.json   the endorsement
    FOLDER/endorsed/DIGEST.npz    the model, ciphertext; none where DIGEST is that of a run's state
    FOLDER/lifted/DIGEST.json     the same for a lock: DIGEST is that of contract, round and absent site (`lock_id`)
"""

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from fedpp.aggregation.global_state import GlobalState, warm_start
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.errors import FedppError, ModelError, VaultError
from fedpp.files import make_folder, replace
from fedpp.keys.key_store import Site
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.membership import SITE_NAME, Hash, is_signed
from fedpp.values import Declared, canonical, whole

from . import run_refusals
from .run_site import RunSite, digest_key, refused

ENDORSED, LIFTED = "endorsed", "lifted"  # folders
_PURPOSES = {ENDORSED: "endorsement", LIFTED: "lifted lock"}  # which are signed: nobody lifts a lock by endorsing


@dataclass(frozen=True)
class Endorsement(Declared, label="endorsement", error=VaultError):
    """A site's consent to a model, by the identifier of its weights, to a run's state, or to the lift of a lock."""

    digest: Hash
    domain: Hash  # fingerprint: of one key epoch
    site: Annotated[str, SITE_NAME]
    expires: Annotated[int, whole(0, 2**53 - 1)]  # seconds since 1970
    signature: str = ""

    def signed(self, site: Site, kind: str) -> "Endorsement":
        """Return the endorsement with the site's signature; `kind` is the folder that it is for."""
        content = self.changed(signature="").to_json().encode()
        return self.changed(signature=site.identity.sign(_PURPOSES[kind], content))

    def require(self, site: Site, now: datetime, kind: str) -> None:
        """Raise `VaultError` unless the site itself made it, for this key epoch and folder, and it is current."""
        content = self.changed(signature="").to_json().encode()
        if (self.domain, self.site) != (site.domain.card().fingerprint, site.identity.name):
            raise VaultError("an endorsement is of another domain, key epoch or site")
        if not is_signed(site.identity.signing_key, self.signature, _PURPOSES[kind], content):
            raise VaultError("an endorsement was not signed by this site")
        if now.timestamp() >= self.expires:
            raise VaultError("an endorsement has expired: endorse the model again")


def endorse(folder: Path, site: Site, digest: str, expires: datetime, model: EncryptedModel | None = None) -> None:
    """Write an endorsement into a folder of runs, and the model that it is of."""
    make_folder(folder, 0o700)
    make_folder(folder / ENDORSED, 0o700)
    if model is not None:
        replace(folder / ENDORSED / f"{digest}.npz", model.content())
    _write(folder, site, digest, expires, ENDORSED)


def lift(folder: Path, site: Site, contract: str, number: int, absent: str, expires: datetime) -> None:
    """Write into a folder of runs that this site's staff lifts the lock of a site in a round that it has not burned."""
    make_folder(folder / LIFTED, 0o700)
    _write(folder, site, lock_id(contract, number, absent), expires, LIFTED)


def lock_id(contract: str, number: int, absent: str) -> str:
    """Return the digest by which a lifted lock is signed: `number` is the round, `contract` the absent site's."""
    return sha256(canonical({"absent": absent, "contract": contract, "round": number})).hexdigest()


def model_id(site: Site, model: EncryptedModel) -> str:
    """Return the identifier of a model's weights, which a contract names as its initial model."""
    model.require_fitting(site.domain.card().fingerprint, ())
    return RunStage(warm_start(model, ServerOptimizerConfig())).weights_id(digest_key(site.domain))


def require_endorsed(of: RunSite, digest: str, kind: str = ENDORSED) -> None:
    """Raise `VaultError` unless this site endorsed the model or state of this digest, or lifted that lock."""
    refusal = run_refusals.UNENDORSED if kind == ENDORSED else run_refusals.NOT_LIFTED
    try:
        text = (of.journal.folder / kind / f"{digest}.json").read_text()
        found = Endorsement.from_json(text)
        found.require(of.site, of.now(), kind)
        if found.digest != digest:
            raise VaultError("an endorsement is of another model than its name says")
    except FileNotFoundError:
        raise refused(refusal, f"{digest} is not {kind}") from None
    except (OSError, FedppError) as error:
        raise refused(refusal, f"{digest}: {error}") from None


def endorsed_state(of: RunSite, digest: str, rule: ServerOptimizerConfig, salt: str) -> GlobalState:
    """Return the state of an endorsed model."""
    try:
        model = EncryptedModel.load(of.journal.folder / ENDORSED / f"{digest}.npz")
        if model_id(of.site, model) != digest:
            raise ModelError("the model is another one than its name says")
        return warm_start(model, rule, salt)
    except FedppError as error:
        raise refused(run_refusals.UNENDORSED, f"{digest}: {error}") from None


def _write(folder: Path, site: Site, digest: str, expires: datetime, kind: str) -> None:
    made = Endorsement(digest, site.domain.card().fingerprint, site.identity.name, int(expires.timestamp()))
    replace(folder / kind / f"{digest}.json", made.signed(site, kind).to_json().encode())
