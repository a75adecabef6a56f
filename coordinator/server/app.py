"""The coordinator's ServerApp: it adds up words and counts, and is given no key.

It writes `federation.json` (what happened, in public facts and counts) and the model into the run's `out` folder:
`model.sealed`, which a member's vault opens, or where the run's masking is off `model.npz`, encrypted weights. In the
frame form without masking a strategy of Flower may make the model here, of the updates that it then reads. In the
folder `run` there it keeps what another one needs to go on in its place.
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
from fedpp.config.model_spec import ModelSpec, Task
from fedpp.config.run_config import RunConfig
from fedpp.errors import FederationError, FedppError
from fedpp.files import replace
from fedpp.protocol import messages
from fedpp.protocol.membership import NO_BUNDLE, NONCE_BYTES, Run
from fedpp.protocol.run_record import BEFORE, CLEAR, RECORD, SEALED, FederationRecord
from fedpp.protocol.run_spec import RunSpec

from . import initial_model
from .admission import Admission, Admissions
from .aggregate import Aggregation, RingSum
from .chosen_strategy import ChosenStrategy
from .flower_strategies import FlowerAggregation
from .initial_model import InitialModel
from .progress import Progress, ProgressFile
from .replies import UNKNOWN, digest_of
from .run_state import Checkpoint, RunState, StoppedError, patiently
from .strategy import FederatedAveraging

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation as the run configuration says."""
    federate(grid, RunConfig.from_mapping(dict(context.run_config)))


def federate(grid: Grid, config: RunConfig) -> FederationRecord:
    """Admit the sites, train for the given rounds, test, and write the results; go on with a run that was begun."""
    folder = RunState(Path(config.out))
    with folder.held():
        progress = ProgressFile(folder.progress, Progress(run=str(grid.run.run_id), rounds=config.rounds))
        try:
            if (folder.out / RECORD).exists():  # who died had it all but told
                record = FederationRecord.load(folder.out / RECORD)
            else:
                record = _federate(grid, config, folder, progress)
        except FedppError as error:
            progress.tell(phase="stopped" if isinstance(error, StoppedError) else "failed", reason=str(error))
            raise
        except Exception as error:  # `run` starts another one: not in silence
            folder.note(f"the ServerApp failed: {type(error).__name__}: {error}")
            raise
        (folder.out / BEFORE).unlink(missing_ok=True)
        folder.finish()
        progress.tell(phase="completed")
        return record


def _federate(grid: Grid, config: RunConfig, folder: RunState, progress: ProgressFile) -> FederationRecord:
    card = DomainCard.from_json(config.card)
    chosen = ChosenStrategy.of(config, card.scheme)
    earlier = initial_model.read(Path(config.initial_model), card.fingerprint) if config.initial_model else None
    bundle = grid.run.fab_hash or NO_BUNDLE  # of this code
    nonce = folder.nonce(secrets.token_hex(NONCE_BYTES))
    run = Run(card.ca_key, card.fingerprint, nonce, str(grid.run.run_id), bundle)
    if not config.secure_aggregation:
        folder.note("secure aggregation is OFF: this coordinator sees each site's updates, and the model")
    if chosen:
        folder.note(f"{config.strategy} of Flower makes each new model here, of the sites' updates")
    admissions = Admissions(grid, run, card.n, folder.note, folder.require_going)
    begun = folder.position()
    if begun is None:
        admissions.wait(config)
    else:  # its sites may be at work on the round yet, and in the end on models of their own for as long as the run
        times = config.rounds if config.local_baseline and begun.round == config.rounds else 1
        wanted = begun.sites.keys() - begun.quarantined.keys()
        admissions.wait(config, wanted, times * config.round_seconds)
    run_spec = run_spec_of(admissions.admitted, config, card)
    at = folder.checkpoint(run_spec.network)
    write = partial(patiently, seconds=config.wait_seconds, folder=folder)

    def keep_model(state: bytes) -> None:
        write(lambda: keep(state, out=folder.out, masked=config.secure_aggregation))

    if at is None:
        at = initial_state(grid, admissions.admitted, earlier, run_spec, config.round_seconds, folder)
        write(partial(folder.keep, at))
    elif at.round:
        folder.note(f"going on after round {at.round}")
        progress.tell(round_seconds=at.seconds / at.round)
        keep_model(at.state)  # who died may have kept the round, and not yet the model

    def aggregate(due: Round, before: Checkpoint) -> Aggregation:
        return (
            RingSum(due, masked=config.secure_aggregation) if chosen is None else FlowerAggregation(chosen, due, before)
        )

    rounds = FederatedAveraging(
        grid,
        config,
        admissions,
        run_spec,
        folder,
        progress,
        length=run_spec.network.parameters() * card.n,
        aggregate=aggregate,
        keep=keep_model,
    )
    last = rounds.federate(at)
    tested = rounds.test(last)
    local_baseline = rounds.local_baseline() if config.local_baseline else {}
    record = FederationRecord(
        domain=card.fingerprint,
        scheme=card.scheme,
        bundle=bundle,
        run=run.number,
        masked=config.secure_aggregation,
        seed=config.seed,
        dtype=config.dtype,
        network=run_spec.network,
        sites=tuple(rounds.known.values()),
        datasets=rounds.datasets,
        refused=dict(admissions.admitted.refused),
        quarantined=rounds.quarantined,
        test=tested,
        rounds=last.rounds,
        seconds=last.seconds,
        settings=config.told(),
        local_baseline=local_baseline,
    )
    content = json.dumps(record.to_mapping(), indent=1).encode()
    write(lambda: replace(folder.out / RECORD, content))
    return record


def keep(state: bytes, *, out: Path, masked: bool) -> None:
    """Write the model of a round in place of the last one's.

    A sealed one may be none, which only a site can see: the one before stays beside it until the run is over.
    """
    sealed = out / SEALED
    if not masked:
        GlobalState.from_bytes(state).model().save(out / CLEAR)
    elif not sealed.exists() or sealed.read_bytes() != state:
        if sealed.exists():
            sealed.replace(out / BEFORE)
        replace(sealed, state)


def run_spec_of(admission: Admission, config: RunConfig, card: DomainCard) -> RunSpec:
    """Return what all questions of the run say alike, of the admitted sites."""
    run_spec = RunSpec(
        domain=card.fingerprint,
        network=network_of(admission, config),
        dtype=config.dtype,
        hyperparameters=config.hyperparameters(),
        rule=config.server_optimizer_config(),
        epochs=config.epochs,
        seed=config.seed,
        masked=config.secure_aggregation,
        examples=1,
        sites=1,
        max_examples=config.max_examples,
        bound=config.max_update_value,
        max_norm=config.max_update_norm,
        max_loss_increase=config.max_loss_increase,
    )
    return run_spec.of_sites(admission.sites.values())


def network_of(admission: Admission, config: RunConfig) -> ModelSpec:
    """Return the network that fits the admitted sites' data."""
    site = next(iter(admission.sites.values()))
    sizes = (config.filter_sizes(), config.kernel, config.dense, config.lstm)
    return ModelSpec.of(Task.of(site), *sizes, architecture=config.architecture, voting=config.voting)


def initial_state(
    grid: Grid,
    admission: Admission,
    earlier: InitialModel | None,
    run_spec: RunSpec,
    timeout: float,
    folder: RunState,
) -> Checkpoint:
    """Ask one site after the other for the state of round 0, until one answers; raise `FederationError`."""
    form, model = form_of(earlier, admission, run_spec)
    content = RecordDict(
        {
            messages.CONFIG: messages.InitialRequest(run_spec, form).to_record(),
            messages.PARTICIPANTS: admission.participants.to_record(),
        }
    )
    if model:
        content[messages.ARRAYS] = ArrayRecord({messages.STATE: messages.pack_state(model)})
    for node, site in admission.sites.items():
        question = Message(content, dst_node_id=node, message_type=f"{MessageType.QUERY}.{messages.INITIAL_WEIGHTS}")
        reply = next(iter(grid.send_and_receive([question], timeout=timeout)), None)
        try:
            state = messages.state_of(messages.content_of(reply))
            # Of a sealed one there is one site's word alone: it must not turn the others away.
            return Checkpoint(0, UNKNOWN if run_spec.masked else digest_of(state), state, (), 0.0)
        except FederationError as error:
            folder.note(f"initial weights of {site.name} left out: {error}")
    raise FederationError("no site sent initial weights: the messages above say why")


def form_of(earlier: InitialModel | None, admission: Admission, run_spec: RunSpec) -> tuple[str, bytes]:
    """Return the form and the content in which a site is sent an earlier model; raise an error if it does not fit."""
    if earlier is None:
        return "", b""
    if isinstance(earlier, bytes):
        return "sealed", earlier
    site = next(iter(admission.sites.values()))
    earlier.require_fitting(site.domain, site.classes)
    if (earlier.network, earlier.dtype) != (run_spec.network, run_spec.dtype):
        raise FederationError(
            "the earlier model is another network, or of another dtype, than the run's: set what it was trained with"
        )
    return "clear", warm_start(earlier, run_spec.rule).to_bytes()
