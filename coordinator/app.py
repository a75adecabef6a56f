"""The coordinator's ServerApp: it averages ciphertext, adds up counts, and is given no key.

It writes `federation.json` (what happened, in public facts and counts) and `model.npz` (encrypted weights)
into the run's `out` folder.
"""

import json
import secrets
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedpp.cipher.params import DomainCard
from fedpp.config import RunConfig
from fedpp.errors import FederationError
from fedpp.files import replace
from fedpp.learning.model_file import EncryptedModel
from fedpp.network import NetworkSpec, Task
from fedpp.protocol import wire
from fedpp.protocol.federation import FederationRecord
from fedpp.protocol.membership import NO_BUNDLE, NONCE_BYTES, Run

from .admission import Admission, admit
from .strategy import EncryptedFedAvg, note

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation as the run configuration says."""
    federate(grid, RunConfig.from_mapping(dict(context.run_config)))


def federate(grid: Grid, config: RunConfig) -> FederationRecord:
    """Admit the sites, train for the given rounds, test, and write the results."""
    started = time.monotonic()
    card = DomainCard.from_json(config.card)
    bundle = grid.run.fab_hash or NO_BUNDLE  # of this code
    run = Run(card.certifying_key, card.fingerprint, secrets.token_hex(NONCE_BYTES), str(grid.run.run_id), bundle)
    admission = admit(grid, config, run, card.n)
    network = network_of(admission, config)
    common = (card.fingerprint, network, config.dtype, config.recipe())
    strategy = EncryptedFedAvg(
        admission.sites,
        wire.TrainRequest(*common, epochs=config.epochs, seed=config.seed, round=1),
        wire.EvaluateRequest(*common, split="validation"),
        admission.participants,
    )
    initial = model_to_go_on_from(admission, config, network) or initial_weights(grid, admission, config, network)
    result = strategy.start(grid, initial, num_rounds=config.rounds, timeout=config.reply_seconds)
    questions = strategy.evaluation("test", result.arrays)
    tested = strategy.counts("test", grid.send_and_receive(questions, timeout=config.reply_seconds))
    record = FederationRecord(
        domain=card.fingerprint,
        bundle=bundle,
        seed=config.seed,
        dtype=config.dtype,
        network=network,
        sites=tuple(admission.sites.values()),
        datasets={proof.statement.site: proof.statement.dataset for proof in admission.participants.proofs},
        refused=dict(admission.refused),
        rounds=tuple(strategy.rounds),
        test=tested,
        seconds=time.monotonic() - started,
    )
    out = Path(config.out)
    classes = next(iter(admission.sites.values())).classes
    rows = wire.unpack_arrays(RecordDict({wire.ARRAYS: result.arrays}))
    EncryptedModel(network, card.fingerprint, classes, rows).save(out / "model.npz")
    replace(out / "federation.json", json.dumps(record.to_mapping(), indent=1).encode())
    return record


def network_of(admission: Admission, config: RunConfig) -> NetworkSpec:
    """Return the network that fits the admitted sites' data."""
    site = next(iter(admission.sites.values()))
    sizes = (config.filter_sizes(), config.kernel, config.dense, config.lstm)
    return NetworkSpec.of(Task.of(site), *sizes, architecture=config.architecture, voting=config.voting)


def model_to_go_on_from(admission: Admission, config: RunConfig, network: NetworkSpec) -> ArrayRecord | None:
    """Return the weights of an earlier run's model, if one is named; raise `FederationError` if it does not fit."""
    if not config.initial:
        return None
    model, site = EncryptedModel.load(Path(config.initial)), next(iter(admission.sites.values()))
    model.require_fitting(site.domain, site.classes)
    if (model.network, model.dtype) != (network, config.dtype):
        raise FederationError(
            f"{config.initial} is another network, or of another dtype, than the run's: set what it was trained with"
        )
    return wire.pack_arrays(model.rows)


def initial_weights(grid: Grid, admission: Admission, config: RunConfig, network: NetworkSpec) -> ArrayRecord:
    """Ask one site's vault after the other for encrypted initial weights, until some fit; raise `FederationError`."""
    domain = next(iter(admission.sites.values())).domain
    request = wire.InitialWeightsRequest(domain, network, config.dtype, seed=config.seed)
    for node, site in admission.sites.items():
        question = Message(
            RecordDict({wire.CONFIG: request.to_record()}),
            dst_node_id=node,
            message_type=f"{MessageType.QUERY}.{wire.INITIAL_WEIGHTS}",
        )
        reply = next(iter(grid.send_and_receive([question], timeout=config.reply_seconds)), None)
        try:
            return wire.pack_arrays(wire.rows_of(wire.content_of(reply), network, site.n, config.dtype))
        except FederationError as error:
            note(f"initial weights of {site.name} left out: {error}")
    raise FederationError("no site sent initial weights that fit: the messages above say why")
