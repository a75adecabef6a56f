"""Endorsements: models that this hospital lets a run start from, and states from which it joins a run in progress.

`fedpp-site endorse` writes them beside the journal, signed by the site's identity; the running vault reads them. So
nobody outside the hospital chooses the weights that its data are computed with: without an endorsement of its own a
vault takes part in runs from fresh weights alone.

::

    FOLDER/endorsed/DIGEST.json   the endorsement
    FOLDER/endorsed/DIGEST.npz    the model, ciphertext; none where DIGEST is that of a run's state
"""

from dataclasses import dataclass
from datetime import datetime
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
from fedpp.values import Declared, whole

from . import run_refusals
from .run_site import RunSite, digest_key, refused

ENDORSED = "endorsed"
PURPOSE = "endorsement"


@dataclass(frozen=True)
class Endorsement(Declared, label="endorsement", error=VaultError):
    """A site's consent to a model, by the identifier of its weights, or to a run's state, by its digest."""

    digest: Hash
    domain: Hash  # fingerprint: of one key epoch
    site: Annotated[str, SITE_NAME]
    expires: Annotated[int, whole(0, 2**53 - 1)]  # seconds since 1970
    signature: str = ""

    def signed(self, site: Site) -> "Endorsement":
        """Return the endorsement with the site's signature."""
        return self.changed(signature=site.identity.sign(PURPOSE, self.changed(signature="").to_json().encode()))

    def require(self, site: Site, now: datetime) -> None:
        """Raise `VaultError` unless the site itself made it, for this key epoch, and it is current."""
        content = self.changed(signature="").to_json().encode()
        if (self.domain, self.site) != (site.domain.card().fingerprint, site.identity.name):
            raise VaultError("an endorsement is of another domain, key epoch or site")
        if not is_signed(site.identity.signing_key, self.signature, PURPOSE, content):
            raise VaultError("an endorsement was not signed by this site")
        if now.timestamp() >= self.expires:
            raise VaultError("an endorsement has expired: endorse the model again")


def endorse(folder: Path, site: Site, digest: str, expires: datetime, model: EncryptedModel | None = None) -> None:
    """Write an endorsement into a folder of runs, and the model that it is of."""
    made = Endorsement(digest, site.domain.card().fingerprint, site.identity.name, int(expires.timestamp()))
    make_folder(folder, 0o700)
    make_folder(folder / ENDORSED, 0o700)
    if model is not None:
        replace(folder / ENDORSED / f"{digest}.npz", model.content())
    replace(folder / ENDORSED / f"{digest}.json", made.signed(site).to_json().encode())


def model_id(site: Site, model: EncryptedModel) -> str:
    """Return the identifier of a model's weights, which a contract names as its initial model."""
    model.require_fitting(site.domain.card().fingerprint, ())
    return RunStage(warm_start(model, ServerOptimizerConfig())).weights_id(digest_key(site.domain))


def require_endorsed(of: RunSite, digest: str) -> None:
    """Raise `VaultError` unless this site endorsed the model or state of this digest."""
    try:
        text = (of.journal.folder / ENDORSED / f"{digest}.json").read_text()
        found = Endorsement.from_json(text)
        found.require(of.site, of.now())
        if found.digest != digest:
            raise VaultError("an endorsement is of another model than its name says")
    except FileNotFoundError:
        raise refused(run_refusals.UNENDORSED, f"{digest} is not endorsed") from None
    except (OSError, FedppError) as error:
        raise refused(run_refusals.UNENDORSED, f"{digest}: {error}") from None


def endorsed_state(of: RunSite, digest: str, rule: ServerOptimizerConfig, salt: str) -> GlobalState:
    """Return the state of an endorsed model."""
    try:
        model = EncryptedModel.load(of.journal.folder / ENDORSED / f"{digest}.npz")
        if model_id(of.site, model) != digest:
            raise ModelError("the model is another one than its name says")
        return warm_start(model, rule, salt)
    except FedppError as error:
        raise refused(run_refusals.UNENDORSED, f"{digest}: {error}") from None
