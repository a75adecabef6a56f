"""Reply policy of a site: which requests its `site.yaml` allows now, and what of an error the coordinator may see.

Paths of the hospital and figures of its data stay in the site's own log.
"""

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message, RecordDict

from fedpp.config.run_config import BUNDLE, SITES_FOLDER, SiteConfig
from fedpp.config.site_policy import SitePolicy, request_of, today
from fedpp.errors import (
    ConfigError,
    DatasetError,
    DomainMismatchError,
    FederationError,
    FedppError,
    KeyFileError,
    MaskError,
    ModelError,
    PolicyError,
    UpdateCheckError,
    VaultError,
)
from fedpp.protocol import messages
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.texts import one_line, printable_lines

# Errors whose text holds no path of the hospital and, except an update check's, no figure of its data.
PUBLIC = (DomainMismatchError, FederationError, MaskError, ModelError, PolicyError)
FAILED = "it failed: its own log says where"
# Sent to the coordinator in place of errors whose text may hold paths of the hospital.
REASONS: Mapping[type[FedppError], str] = {
    ConfigError: "its settings do not fit: its own log says which",
    DatasetError: "its dataset cannot be read: its own log says why",
    KeyFileError: "its keys cannot be read: its own log says why",
    VaultError: "its vault does not answer, or refuses: its own log says why",
}

_log = logging.getLogger("fedpp.site")


@dataclass(frozen=True)
class Query:
    """One message of the coordinator to this site, with the site's settings and policy at that time."""

    content: RecordDict
    site: SiteConfig
    policy: SitePolicy
    run: str  # Flower's number of the run

    @property
    def bundle(self) -> str:
        """Return the hash of the app bundle that runs, as the site measured it; in a simulation there is none."""
        return os.environ.get(BUNDLE, NO_BUNDLE)


def replying(handler: Callable[[Query], RecordDict]) -> Callable[[Message, Context], Message]:
    """Turn a handler into a ClientApp function that logs each error, and refuses with what others may know of it."""

    def reply(message: Message, context: Context) -> Message:
        try:
            site = site_config(context)
            policy = SitePolicy.load(site.policy)
            policy.require_current(today())
            policy.require_request(request_of(message.metadata.message_type))
            query = Query(message.content, site, policy, str(message.metadata.run_id))
            return Message(handler(query), reply_to=message)
        except FedppError as error:
            _log.warning("%s refused: %s", handler.__name__, one_line(str(error)))
            return messages.refuse(public_reason(error), message)
        except Exception:  # noqa: BLE001  Flower would send its text to the coordinator
            _log.error("%s failed: %s", handler.__name__, printable_lines(traceback.format_exc()))
            return messages.refuse(FAILED, message)

    return reply


def public_reason(error: FedppError) -> str:
    """Return what others may know of an error: no path of the hospital and no figure of its data."""
    if isinstance(error, UpdateCheckError):
        return error.kind
    return str(error) if isinstance(error, PUBLIC) else REASONS.get(type(error), FAILED)


@contextmanager
def hide_figures() -> Iterator[None]:
    """Keep layer, batch and sequences of a training error or a prediction error from the coordinator."""
    try:
        yield
    except ModelError as error:
        raise UpdateCheckError(
            "the training diverged, or its data do not fit: lower the learning rate", str(error)
        ) from None


def site_config(context: Context) -> SiteConfig:
    """Return the addresses of this node's site."""
    node = dict(context.node_config)
    if "partition-id" not in node:
        return SiteConfig.from_mapping(node)
    folder = os.environ.get(SITES_FOLDER)
    if folder is None:
        raise ConfigError(f"a simulated node needs the folder of site files in {SITES_FOLDER}")
    return SiteConfig.from_mapping(json.loads((Path(folder) / f"{node['partition-id']}.json").read_text()))
