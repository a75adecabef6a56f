"""Launcher of one task from the coordinator: checks the site's policy before anything of the bundle is unpacked.

It replaces Flower's `flwr-clientapp` and uses the same functions of Flower, with three differences: the policy is
checked first, against a hash that is computed here and not the one that the coordinator claims; the code that runs is
the code that was hashed, in a new folder (Flower's is named by 32 bits of the claimed hash, and an older bundle there
would run unseen); and no text of an error leaves the hospital.
"""

import logging
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from threading import Timer
from typing import Any, NoReturn

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus

from fedpp.config.run_config import BUNDLE
from fedpp.config.site_policy import SitePolicy, request_of, today
from fedpp.errors import FederationError, FedppError, PolicyError
from fedpp.flower.task_runtime import (
    LoadClientAppError,
    load_app,
    pull_task_input,
    push_message,
    push_task_output,
    start_heartbeat,
    start_parent_process_monitor,
    task_client,
)
from fedpp.texts import one_line

from .app_bundle import Bundle
from .launch import ROOT, Launch

EXIT_SECONDS = 5.0
UNREADABLE = "this site's policy cannot be read: its own log says why"
FAILED = "this site failed to reply: its own log says where"

_log = logging.getLogger("fedpp.site")


def main(options: Launch, token: str) -> NoReturn:
    """Run the task of this token, and exit."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    np.random.seed()  # noqa: NPY002  a bundle may use it; processes forked from one share its state
    multiprocessing.set_start_method("fork", force=True)  # a bundle's processes start as by Python's default
    status = 1
    try:
        start_parent_process_monitor(options.parent)
        status = _run(options, token)
    except KeyboardInterrupt:
        pass  # the run or the site was stopped
    finally:
        forced = Timer(
            EXIT_SECONDS, os._exit, (status,)
        )  # a thread left by the bundle must not occupy one of the executor's places
        forced.daemon = True
        forced.start()
    sys.exit(status)


def _run(options: Launch, token: str) -> int:
    """Pull the task, reply to it, and report it to the SuperNode as done; return the exit status.

    If no reply was sent, the task is not reported as done: the SuperNode replies itself when the heartbeat stops.
    """
    try:
        client = task_client(options.runtime, token)
        heartbeat = start_heartbeat(client)
        message, context, _, fab = pull_task_input(client)
    except Exception as error:  # noqa: BLE001  Flower's, its HTTP library's, and those of a damaged message
        _log.error("a task could not be taken from the SuperNode: %s", one_line(f"{type(error).__name__}: {error}"))
        return 1  # stopping the heartbeat could take forever; it ends with this process
    run = message.metadata.run_id
    try:
        push_message(client, reply_of(message, context, Bundle(fab.content), options), context)
    except Exception:  # noqa: BLE001  of the bundle's reply
        _log.exception("the reply to run %d could not be sent", run)
        try:
            push_message(client, _failed(message), context)
        except Exception:  # noqa: BLE001  of its context, or of a SuperNode that has ended
            _log.exception("run %d got no reply", run)
            return 1
    try:
        push_task_output(client, context, SubStatus.COMPLETED, "")
    except Exception:  # noqa: BLE001  of the bundle's state
        _log.exception("the state of run %d could not be saved", run)
        push_task_output(client, None, SubStatus.COMPLETED, "")
    if heartbeat.is_running:
        heartbeat.stop()
    client.close()
    return 0


def reply_of(message: Message, context: Context, bundle: Bundle, options: Launch) -> Message:
    """Return the reply of the bundle's ClientApp, or an error with the reason of the site's policy."""
    try:
        if reason := _denied(message, bundle, options):
            return Message(Error(ErrorCode.INVALID_FAB, reason), reply_to=message)
        # Files that a bundle leaves in its folder must not cost the reply.
        with tempfile.TemporaryDirectory(prefix="bundle-", dir=options.work, ignore_cleanup_errors=True) as folder:
            reply = _loaded(bundle, Path(folder))(message, context)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  whatever the bundle raises; Flower would send its text
        _log.exception("run %d failed", message.metadata.run_id)
        return _failed(message)
    return reply


def _failed(message: Message) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, FAILED), reply_to=message)


def _denied(message: Message, bundle: Bundle, options: Launch) -> str | None:
    """Return why the site's policy does not allow this bundle, without a path, and log it; None if it does."""
    run = message.metadata.run_id
    try:
        policy = SitePolicy.load(options.policy)
        policy.require_current(today())
        policy.require_request(request_of(message.metadata.message_type))
    except FedppError as error:
        _log.warning("run %d refused: %s", run, error)
        return str(error) if isinstance(error, PolicyError) else UNREADABLE
    try:
        policy.require_bundle(bundle.hash)
    except PolicyError as error:
        _log.warning("%s", _not_approved(bundle, run, options))
        return str(error)
    return None


def _loaded(bundle: Bundle, folder: Path) -> ClientApp:
    """Unpack an approved bundle and return its ClientApp, which imports no module of ours in place of its own."""
    bundle.unpack(folder)
    settings: Mapping[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())
    os.environ[BUNDLE] = bundle.hash
    sys.path.remove(str(ROOT))
    for name in [name for name in sys.modules if name.partition(".")[0] in {"fedpp", "sites"}]:
        del sys.modules[name]
    app = load_app(settings["tool"]["flwr"]["app"]["components"]["clientapp"], LoadClientAppError, folder)
    if not isinstance(app, ClientApp):
        raise LoadClientAppError(f"the bundle's ClientApp is {type(app).__name__}")
    return app


def _not_approved(bundle: Bundle, run: int, options: Launch) -> str:
    """Keep a bundle that is not approved, and return the line that says how to approve it."""
    try:
        kept = shlex.quote(str(bundle.keep(options.refused)))
        approved = kept  # the file: `approve` checks that its hash is its name
    except (OSError, FederationError) as error:
        _log.warning("bundle %s cannot be kept for review: %s", bundle.hash, error)
        kept, approved = "BUNDLE.fab", bundle.hash
    return (
        f"bundle {bundle.hash} of run {run} is not approved here: review it with "
        f"`fedpp-site review {kept} --out FOLDER`, approve it with "
        f"`fedpp-site approve {approved} --policy {shlex.quote(str(options.policy))}`"
    )
