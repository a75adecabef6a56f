"""ClientApp of a site: trains on ciphertext, accepts or rejects new global models, and evaluates the final one.

One handler for each message of `fedpp.protocol.messages`, none of which runs before the site's policy allows it
(`reply_policy`), the run fits the site, and its participants are members (`participation`); those of masked runs are in
`masked_rounds`. What needs the domain secret (initial weights, masks, seals, evaluation counts) the site's vault does:
the app never holds that secret, and docs/explanation/threats.md says what the evaluation key shows its reader.

Its five addresses (`SiteConfig`: dataset, evaluation key, vault, policy, work folder) are in the SuperNode's node
configuration; in a simulation, whose nodes know a number only, in files of the folder that `FEDPP_SITES` names.
"""

import json
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedpp.aggregation import update_check
from fedpp.aggregation.global_state import SALT_BYTES, GlobalState, Rows, initial
from fedpp.aggregation.round_context import Aggregate, Round
from fedpp.config.run_config import SPLITS
from fedpp.errors import FederationError, ModelError
from fedpp.files import replace
from fedpp.learning.metrics import metrics
from fedpp.protocol import messages
from fedpp.protocol.label_counts import LabelCounts
from fedpp.protocol.site_description import SiteDescription
from fedpp.texts import one_line
from fedpp.vault_api.vault_client import SiteInfo, VaultClient

from . import local_round, masked_rounds
from .participation import Participation, coordinator_of, has_state, open_dataset, participating
from .reply_policy import Query, public_reason, replying
from .same_site import require_one_site

_log = logging.getLogger("fedpp.site")

app = ClientApp()
for _kind, _handler in masked_rounds.HANDLERS.items():
    _category, _, _action = _kind.partition(".")
    getattr(app, _category)(_action)(replying(_handler))


@app.query(messages.DESCRIBE)
@replying
def describe(query: Query) -> RecordDict:
    """Reply with the site's description and proof of membership, if its key, dataset and vault belong together.

    Every byte of the dataset is read, once a run: a damaged shard is found before training starts.
    """
    request = messages.DescribeRequest.read(query.content)
    key, dataset = open_dataset(query)
    with VaultClient(query.site.vault) as vault:
        info = vault.info()
        require_one_site(key, dataset, info)
        dataset.verify()
        proof = vault.sign(request.nonce, query.run, request.protocol, query.bundle, coordinator_of(query.site))
    description = _description(info, key.n)
    proved = ConfigRecord({"proof": proof.to_json()})
    return RecordDict({messages.SITE: ConfigRecord(description.to_mapping()), messages.PROOF: proved})


def _description(info: SiteInfo, n: int) -> SiteDescription:
    return SiteDescription(
        name=info.site,
        domain=info.domain,
        n=n,
        task=info.task,
        sequences=tuple(info.sequences.get(split, 0) for split in SPLITS),
        patients=tuple(info.patients.get(split, 0) for split in SPLITS),
    )


@app.query(messages.INITIAL_WEIGHTS)
@replying
def initial_weights(query: Query) -> RecordDict:
    """Reply with the state of round 0: of weights that the vault draws, or of the initial model in the message."""
    request = messages.InitialRequest.read(query.content)
    run_spec = request.run_spec
    with participating(query, run_spec) as part:
        state = initial(
            _initial_model(part).rows if has_state(query.content) else _fresh_weights(part),
            network=run_spec.network,
            domain=run_spec.domain,
            dtype=run_spec.training.dtype,
            classes=part.dataset.manifest.classes,
            rule=run_spec.server_optimizer,
            salt=secrets.token_hex(SALT_BYTES),
        )
        return RecordDict({messages.ARRAYS: ArrayRecord({messages.STATE: messages.pack_state(state.to_bytes())})})


def _fresh_weights(part: Participation) -> Rows:
    training = part.run_spec.training
    return part.vault.initial_weights(part.run_spec.network, training.seed, training.dtype)


def _initial_model(part: Participation) -> GlobalState:
    """Return the model in the message, which must be of the run's domain, network and dtype."""
    model, run_spec = GlobalState.from_bytes(messages.state_of(part.query.content)), part.run_spec
    if (model.domain, model.network, model.dtype) != (run_spec.domain, run_spec.network, run_spec.training.dtype):
        raise FederationError(
            "the initial model is of another domain, network or dtype than the run: use that model's settings"
        )
    if model.classes != part.dataset.manifest.classes:
        raise FederationError(f"the initial model's classes are {', '.join(model.classes)}: ingest with the same")
    return model


@app.train()
@replying
def train(query: Query) -> RecordDict:
    """Train on the site's ciphertext, and reply with the encoded update if it passes the update check.

    A repeated request, also of a coordinator that resumed, gets the same reply.
    """
    request = messages.TrainRequest.read(query.content)
    with participating(query, request.run_spec) as part, part.cache.turn(request.round, request.attempt):
        before = part.state(request)
        of = part.round(request, before)
        labels = request.labels or None
        return part.cache.reply(of.to_json(), lambda: _update(part, before, of, labels))


def _update(part: Participation, before: GlobalState, of: Round, labels: LabelCounts | None) -> RecordDict:
    run_spec, trainer = part.run_spec, part.trainer(before.rows)
    part.fit(trainer, (run_spec.training.seed, of.number, *([of.attempt] if of.attempt > 1 else [])), labels)
    update = local_round.update_of(before, trainer.rows())
    update_check.require_update(before.rows, update, run_spec.bounds.max_update_norm)
    known = part.cache.loss_of(before)
    if known is not None:
        loss = metrics(part.counts(trainer, "validation", of.number)).loss
        update_check.require_no_harm(known, loss, run_spec.bounds.max_loss_increase)
    examples = run_spec.weight(len(part.dataset.indices("train")))
    encoded = local_round.encoded(run_spec, update, examples)
    counted = part.label_counts(of.number) if of.number == 1 else None
    return RecordDict(
        {
            messages.ARRAYS: ArrayRecord({messages.WORDS: Array(encoded)}),
            messages.ORIGIN: messages.Origin(run_spec.domain, of.to_json()).to_record(),
            messages.METRICS: MetricRecord(
                {messages.EXAMPLES: examples, **({messages.LABELS: list(counted)} if counted else {})}
            ),
        }
    )


@app.query(messages.ACCEPT)
@replying
def accept(query: Query) -> RecordDict:
    """Compute a round's new global model, and reply with its validation counts and whether the site accepts it.

    In the frame form a Flower strategy at the coordinator may have computed the model.
    """
    request = messages.AcceptRequest.read(query.content)
    with participating(query, request.run_spec) as part:
        before = part.state(request)
        after = _new_model(part, before, request)
        found = part.cache.evaluation(after) or _evaluation(part, before, after)
        reply = RecordDict(
            {
                messages.METRICS: MetricRecord(found["counts"]),
                messages.VERDICT: messages.Verdict(after.digest, found["reason"]).to_record(),
            }
        )
        sent = part.cache.held(after.digest)
        if sent is None:
            sent = after.to_bytes()
            part.cache.hold(after, sent)
        if request.keep:
            reply[messages.ARRAYS] = ArrayRecord({messages.STATE: messages.pack_state(sent)})
        return reply


def _new_model(part: Participation, before: GlobalState, request: messages.AcceptRequest) -> GlobalState:
    """Return the state after the round: of the aggregate, or as the coordinator computed it from the updates."""
    content, run_spec = part.query.content, part.run_spec
    if messages.AFTER in messages.record(content, messages.ARRAYS, ArrayRecord):
        made = messages.state_of(content, messages.AFTER)
        return local_round.given(run_spec, before, made, attempt=request.attempt)
    aggregate, of = Aggregate.from_json(messages.text_of(content, messages.SUM)), part.round(request, before)
    total = messages.words_of(content, of.ring.bits, of.length)
    return local_round.advanced(run_spec, before, aggregate, total, part.key.algebra(), attempt=request.attempt)


def _evaluation(part: Participation, before: GlobalState, after: GlobalState) -> Mapping[str, Any]:
    """Evaluate a new model on the validation split; return its counts, and the reason for a rejection or nothing."""
    counts = part.counts(part.trainer(after.rows), "validation", after.round)
    loss, reason = metrics(counts).loss, ""
    try:
        update = local_round.update_of(before, after.rows)
        update_check.require_update(before.rows, update, part.run_spec.bounds.max_update_norm)
        update_check.require_no_harm(part.cache.loss_of(before), loss, part.run_spec.bounds.max_loss_increase)
    except ModelError as error:
        _log.warning("round %d, attempt %d rejected: %s", after.round, after.attempt, one_line(str(error)))
        reason = public_reason(error)
    found = {"counts": counts.to_mapping(), "reason": reason}
    part.cache.keep(after, loss, found)
    return found


@app.evaluate()
@replying
def evaluate(query: Query) -> RecordDict:
    """Reply with the test counts of the final model, and keep the model where `fedpp-site pull` finds it."""
    request = messages.EvaluateRequest.read(query.content)
    if not has_state(query.content):
        raise FederationError("the request must hold the final model, for the site to keep: it holds a name only")
    with participating(query, request.run_spec) as part:
        model = part.state(request)
        counts = part.counts(part.trainer(model.rows), "test", request.round)
        _keep(messages.state_of(query.content), query.site.work / "models" / f"{query.run}.state")
        part.cache.release()
        return RecordDict({messages.METRICS: MetricRecord(counts.to_mapping())})


def _keep(model: bytes, path: Path) -> None:
    """Keep a run's final model; another one does not replace it."""
    if not path.exists():
        replace(path, model, mode=0o640)
    elif path.read_bytes() != model:
        raise FederationError("this site keeps another final model of this run: it is not replaced")


@app.query(messages.LOCAL_BASELINE)
@replying
def local_baseline(query: Query) -> RecordDict:
    """Train from fresh weights on this site's data only, as long as the run, and reply with the test counts."""
    request = messages.LocalBaselineRequest.read(query.content)
    with participating(query, request.run_spec) as part, part.cache.turn(request.rounds + 1, 1):
        key = json.dumps(["local baseline", request.run_spec.to_json(), request.rounds])
        return part.cache.reply(key, lambda: _local_baseline(part, request.rounds))


def _local_baseline(part: Participation, rounds: int) -> RecordDict:
    trainer, labels = part.trainer(_fresh_weights(part)), part.label_counts(rounds + 2)
    for number in range(1, rounds + 1):
        trainer.load(trainer.rows())  # each round starts with fresh moments, as in the run
        part.fit(trainer, (part.run_spec.training.seed, number), labels if number > 1 else None)
    counts = part.counts(trainer, "test", rounds + 2)
    return RecordDict({messages.METRICS: MetricRecord(counts.to_mapping())})
