"""The coordinator's ServerApp: it adds up words and counts, and is given no key.

It writes `federation.json` (what happened, in public facts and counts) and the model into the run's `out` folder:
`model.sealed`, which a member's vault opens, or where the run's masking is off `model.npz`, encrypted weights.
"""

import json
import secrets
import time
from functools import partial
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedpp.cipher.params import DomainCard
from fedpp.config import RunConfig
from fedpp.errors import FederationError
from fedpp.files import replace
from fedpp.learning.global_state import GlobalState, begun_with
from fedpp.network import NetworkSpec, Task
from fedpp.protocol import wire
from fedpp.protocol.federation import FederationRecord
from fedpp.protocol.membership import NO_BUNDLE, NONCE_BYTES, Run

from . import earlier_model
from .admission import Admission, Admissions, note
from .earlier_model import EarlierModel
from .strategy import MaskedAveraging

SEALED, CLEAR = "model.sealed", "model.npz"
BEFORE = "model-before.sealed"  # of the round before, while a run goes on

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation as the run configuration says."""
    federate(grid, RunConfig.from_mapping(dict(context.run_config)))


def federate(grid: Grid, config: RunConfig) -> FederationRecord:
    """Admit the sites, train for the given rounds, test, and write the results."""
    started = time.monotonic()
    card = DomainCard.from_json(config.card)
    earlier = earlier_model.read(Path(config.initial), card.fingerprint) if config.initial else None
    bundle = grid.run.fab_hash or NO_BUNDLE  # of this code
    run = Run(card.certifying_key, card.fingerprint, secrets.token_hex(NONCE_BYTES), str(grid.run.run_id), bundle)
    if not config.masking:
        note("masking is OFF: this coordinator sees each site's updates, and the model")
    admissions = Admissions(grid, run, card.n)
    admission = admissions.wait(config)
    plan = plan_of(admission, config, card)
    strategy = MaskedAveraging(
        admission,
        plan,
        length=plan.network.parameters() * card.n,
        repeats=config.repeats,
        joined=admissions.poll,
        keep=partial(keep, out=Path(config.out), masked=config.masking),
    )
    first = initial_state(grid, admission, earlier, plan, config.reply_seconds)
    final = strategy.federate(grid, first, rounds=config.rounds, timeout=config.reply_seconds)
    tested, admission = strategy.test(grid, final, config.reply_seconds), strategy.admission
    record = FederationRecord(
        domain=card.fingerprint,
        scheme=card.scheme,
        bundle=bundle,
        run=run.number,
        masked=config.masking,
        seed=config.seed,
        dtype=config.dtype,
        network=plan.network,
        sites=tuple(admission.sites.values()),
        datasets={proof.statement.site: proof.statement.dataset for proof in admission.participants.proofs},
        refused=dict(admission.refused),
        test=tested,
        rounds=tuple(strategy.rounds),
        seconds=time.monotonic() - started,
        settings=config.told(),
    )
    out = Path(config.out)
    replace(out / "federation.json", json.dumps(record.to_mapping(), indent=1).encode())
    (out / BEFORE).unlink(missing_ok=True)
    return record


def keep(state: bytes, *, out: Path, masked: bool) -> None:
    """Write the model of a round in place of the last one's.

    A sealed one may be none, which only a site can see: the one before stays beside it until the run is over.
    """
    if masked:
        if (out / SEALED).exists():
            (out / SEALED).replace(out / BEFORE)
        replace(out / SEALED, state)
    else:
        GlobalState.from_bytes(state).model().save(out / CLEAR)


def plan_of(admission: Admission, config: RunConfig, card: DomainCard) -> wire.Plan:
    """Return what all questions of the run say alike."""
    sites = admission.sites.values()
    return wire.Plan(
        domain=card.fingerprint,
        network=network_of(admission, config),
        dtype=config.dtype,
        recipe=config.recipe(),
        rule=config.server_rule(),
        epochs=config.epochs,
        seed=config.seed,
        masked=config.masking,
        examples=sum(site.sequences[0] for site in sites),
        sites=len(sites),
        bound=config.update_bound,
        most_norm=config.update_norm,
        most_loss_rise=config.loss_rise,
    )


def network_of(admission: Admission, config: RunConfig) -> NetworkSpec:
    """Return the network that fits the admitted sites' data."""
    site = next(iter(admission.sites.values()))
    sizes = (config.filter_sizes(), config.kernel, config.dense, config.lstm)
    return NetworkSpec.of(Task.of(site), *sizes, architecture=config.architecture, voting=config.voting)


def initial_state(
    grid: Grid, admission: Admission, earlier: EarlierModel | None, plan: wire.Plan, timeout: float
) -> bytes:
    """Ask one site after the other for the state of round 0, until one answers; raise `FederationError`."""
    form, model = form_of(earlier, admission, plan)
    content = RecordDict(
        {
            wire.CONFIG: wire.InitialRequest(plan, form).to_record(),
            wire.PARTICIPANTS: admission.participants.to_record(),
        }
    )
    if model:
        content[wire.ARRAYS] = ArrayRecord({wire.STATE: wire.pack_state(model)})
    for node, site in admission.sites.items():
        question = Message(content, dst_node_id=node, message_type=f"{MessageType.QUERY}.{wire.INITIAL_WEIGHTS}")
        reply = next(iter(grid.send_and_receive([question], timeout=timeout)), None)
        try:
            return wire.state_of(wire.content_of(reply))
        except FederationError as error:
            note(f"initial weights of {site.name} left out: {error}")
    raise FederationError("no site sent initial weights: the messages above say why")


def form_of(earlier: EarlierModel | None, admission: Admission, plan: wire.Plan) -> tuple[str, bytes]:
    """Return the form and the content in which a site is sent an earlier model; raise an error if it does not fit."""
    if earlier is None:
        return "", b""
    if isinstance(earlier, bytes):
        return "sealed", earlier
    site = next(iter(admission.sites.values()))
    earlier.require_fitting(site.domain, site.classes)
    if (earlier.network, earlier.dtype) != (plan.network, plan.dtype):
        raise FederationError(
            "the earlier model is another network, or of another dtype, than the run's: set what it was trained with"
        )
    return "clear", begun_with(earlier, plan.rule).to_bytes()
