"""Coordinator's ServerApp: adds encoded updates, relays what sites state, and holds no key.

It writes into the run's `out` folder: `federation.json` (the run's record, of public facts and counts) and the model.
A masked run (`coordinator.server.masked`) ends with `model.sealed`, which a member's vault unseals. A run in clear ends
with `model.npz`, encrypted weights; with orthogonal frame mixing a strategy of Flower may aggregate its updates, which
are then readable here. The folder `run` there holds what another ServerApp needs to resume the run.
"""

import json
import secrets
from functools import partial
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedpp.aggregation.global_state import GlobalState, warm_start
from fedpp.aggregation.round_context import Round
from fedpp.cipher.domain_card import DomainCard
from fedpp.config.run_config import RunConfig
from fedpp.errors import FederationError, FedppError
from fedpp.files import replace
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol import messages
from fedpp.protocol.coordinator_identity import CoordinatorNames
from fedpp.protocol.membership import NO_BUNDLE, NONCE_BYTES, Run
from fedpp.protocol.run_record import CLEAR, RECORD, FederationRecord
from fedpp.protocol.run_spec import RunSpec

from . import initial_model
from .admission import Admission, Admissions
from .aggregate import Aggregation, RingSum
from .chosen_strategy import ChosenStrategy
from .flower_strategies import FlowerAggregation
from .masked import masked_federation
from .progress import Progress, ProgressFile
from .replies import digest_of
from .run_state import Checkpoint, RunState, StoppedError, patiently
from .strategy import FederatedAveraging

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation of this run configuration."""
    federate(grid, RunConfig.from_mapping(dict(context.run_config)))


def federate(grid: Grid, config: RunConfig) -> FederationRecord:
    """Admit the sites, train for the given rounds, test, and write the results; resume a run that was started."""
    folder = RunState(Path(config.out))
    with folder.held():
        progress = ProgressFile(folder.progress, Progress(run=str(grid.run.run_id), rounds=config.rounds))
        try:
            if (folder.out / RECORD).exists():  # an earlier ServerApp crashed after its last write
                record = FederationRecord.load(folder.out / RECORD)
            else:
                carry_out = masked_federation.federate if config.secure_aggregation else _federate_in_clear
                record = carry_out(grid, config, folder, progress)
                content = json.dumps(record.to_mapping(), indent=1).encode()
                patiently(lambda: replace(folder.out / RECORD, content), config.wait_seconds, folder)
        except FedppError as error:
            progress.update(phase="stopped" if isinstance(error, StoppedError) else "failed", reason=str(error))
            raise
        except Exception as error:  # `run` starts another ServerApp: the log must say why
            folder.note(f"the ServerApp failed: {type(error).__name__}: {error}")
            raise
        folder.finish()
        progress.update(phase="completed")
        return record


def _federate_in_clear(grid: Grid, config: RunConfig, folder: RunState, progress: ProgressFile) -> FederationRecord:
    card = DomainCard.from_json(config.card)
    chosen = ChosenStrategy.of(config, card.scheme)
    initial = initial_model.read(Path(config.initial_model), card.fingerprint) if config.initial_model else None
    bundle = grid.run.fab_hash or NO_BUNDLE  # hash of this code
    nonce = folder.nonce(secrets.token_hex(NONCE_BYTES))
    names = CoordinatorNames.of_run(config.coordinator)
    run = Run(card.ca_key, card.fingerprint, nonce, str(grid.run.run_id), bundle, names)
    folder.note("secure aggregation is OFF: this coordinator sees each site's updates, and the model")
    if chosen:
        folder.note(f"{config.strategy} of Flower makes each new model here, from the sites' updates")
    admissions = Admissions(grid, run, card.n, folder.note, folder.require_not_stopped)
    resumed = folder.journal()
    if resumed is None:
        admissions.wait(config)
    else:  # its sites may be busy with the round, and at the end with local baselines for as long as a run
        times = config.rounds if config.local_baseline and resumed.round == config.rounds else 1
        wanted = resumed.sites.keys() - resumed.quarantined.keys()
        admissions.wait(config, wanted, times * config.round_seconds)
    run_spec = run_spec_of(admissions.admitted, config, card)
    at = folder.checkpoint(run_spec.network)
    write = partial(patiently, seconds=config.wait_seconds, folder=folder)

    def keep_model(state: bytes) -> None:
        write(lambda: GlobalState.from_bytes(state).model().save(folder.out / CLEAR))

    if at is None:
        at = initial_state(grid, admissions.admitted, initial, run_spec, config.round_seconds, folder)
        write(partial(folder.write_checkpoint, at))
    elif at.round:
        folder.note(f"resuming after round {at.round}")
        progress.update(round_seconds=at.seconds / at.round)
        keep_model(at.state)  # a crash may have come between the checkpoint and the model

    def aggregate(due: Round, before: Checkpoint) -> Aggregation:
        return RingSum(due) if chosen is None else FlowerAggregation(chosen, due, before)

    rounds = FederatedAveraging(
        grid, config, admissions, run_spec, folder, progress, n=card.n, aggregate=aggregate, keep=keep_model
    )
    last = rounds.federate(at)
    tested = rounds.test(last)
    local_baseline = rounds.local_baseline() if config.local_baseline else {}
    return FederationRecord(
        domain=card.fingerprint,
        scheme=card.scheme,
        bundle=bundle,
        run=run.number,
        masked=False,
        seed=config.training.seed,
        dtype=config.training.dtype,
        network=run_spec.network,
        sites=tuple(rounds.known.values()),
        datasets=rounds.datasets,
        refused=dict(admissions.admitted.refused),
        quarantined=rounds.quarantined,
        test=tested,
        rounds=last.rounds,
        seconds=last.seconds,
        settings=config.reported(),
        local_baseline=local_baseline,
        labels=last.labels,
    )


def run_spec_of(admission: Admission, config: RunConfig, card: DomainCard) -> RunSpec:
    """Return the run specification, which is the same in all requests, for the admitted sites."""
    sites = admission.sites.values()
    run_spec = RunSpec.of_settings(config, card.fingerprint, next(iter(sites)).task, masked=False)
    return run_spec.of_sites(sites)


def initial_state(
    grid: Grid,
    admission: Admission,
    initial: EncryptedModel | None,
    run_spec: RunSpec,
    timeout: float,
    folder: RunState,
) -> Checkpoint:
    """Request the state of round 0 from one site after another until one replies; raise `FederationError`."""
    model = _initial_content(initial, admission, run_spec)
    content = RecordDict(
        {
            messages.CONFIG: messages.InitialRequest(run_spec).to_record(),
            messages.PARTICIPANTS: admission.participants.to_record(),
        }
    )
    if model:
        content[messages.ARRAYS] = ArrayRecord({messages.STATE: messages.pack_state(model)})
    for node, site in admission.sites.items():
        request = Message(content, dst_node_id=node, message_type=f"{MessageType.QUERY}.{messages.INITIAL_WEIGHTS}")
        reply = next(iter(grid.send_and_receive([request], timeout=timeout)), None)
        try:
            state = messages.state_of(messages.content_of(reply))
            return Checkpoint(0, digest_of(state), state, (), 0.0)
        except FederationError as error:
            folder.note(f"initial weights of {site.name} excluded: {error}")
    raise FederationError("no site sent initial weights: the messages above say why")


def _initial_content(initial: EncryptedModel | None, admission: Admission, run_spec: RunSpec) -> bytes:
    """Return the initial model as a request carries it, or nothing; raise an error if the model does not fit."""
    if initial is None:
        return b""
    site = next(iter(admission.sites.values()))
    initial.require_fitting(site.domain, site.task.classes)
    if (initial.network, initial.dtype) != (run_spec.network, run_spec.training.dtype):
        raise FederationError(
            "the initial model has another model specification or dtype than the run: set what it was trained with"
        )
    return warm_start(initial, run_spec.server_optimizer).to_bytes()
