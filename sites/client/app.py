"""The site's ClientApp: it trains on ciphertext and asks the vault for what needs the domain secret.

It is told five addresses (`SiteConfig`): the encrypted dataset, the evaluation key, the vault, the site's policy,
without whose leave it answers nothing, and a folder that it may write to. It never holds the domain secret; what the
evaluation key lets its reader see is said in docs/threats.md. In a deployment the addresses stand in the SuperNode's
node configuration; in a simulation, whose nodes know a number only, in files of a folder that `FEDPP_SITES` names.
"""

import json
import logging
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedpp.aggregation import update_check
from fedpp.aggregation.global_state import SALT_BYTES, GlobalState, Rows, initial
from fedpp.aggregation.round_context import Aggregate, Round
from fedpp.cipher.domain_card import DomainCard
from fedpp.cipher.evaluation_key import AnyKey
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ModelSpec, Task
from fedpp.config.run_config import SPLITS, Dtype
from fedpp.dataset.encrypted_dataset import EncryptedDataset, open_key
from fedpp.errors import DomainMismatchError, FederationError, ModelError
from fedpp.files import replace
from fedpp.learning.metrics import metrics
from fedpp.protocol import messages
from fedpp.protocol.finding_counts import AnyCounts
from fedpp.protocol.membership import Run
from fedpp.protocol.participants import Participants
from fedpp.protocol.run_spec import RunSpec
from fedpp.protocol.site_description import SiteDescription
from fedpp.texts import one_line
from fedpp.vault_api.vault_client import Membership, VaultClient

from . import local_round
from .local_round import Position
from .reply_cache import ReplyCache
from .reply_policy import Asked, answering, figures_stay, told_of
from .same_site import require_one_site
from .update_path import Aggregation, Clear, Masked, about

if TYPE_CHECKING:
    from fedpp.learning.encrypted_training import EncryptedTrainer

_log = logging.getLogger("fedpp.site")

app = ClientApp()


@dataclass(frozen=True)
class Part:
    """What a site does its part in a run with."""

    asked: Asked
    run_spec: RunSpec
    key: AnyKey
    dataset: EncryptedDataset
    nonce: str  # of the run
    aggregation: Aggregation

    @property
    def memory(self) -> ReplyCache:
        """Return what this site remembers of the run."""
        return ReplyCache(self.asked.site.work, self.nonce)


@app.query(messages.DESCRIBE)
@answering
def describe(asked: Asked) -> RecordDict:
    """Answer the site's description and its proof, after checking that key, dataset and vault belong together.

    Every byte of the dataset is read, once a run: a damaged shard is found before training and not in its midst.
    """
    request = messages.DescribeRequest.of(asked.content)
    key, dataset = _open(asked)
    with VaultClient(asked.site.vault) as vault:
        info = vault.info()
        require_one_site(key, dataset, info)
        dataset.verify()
        proof = vault.sign(request.nonce, asked.run, request.protocol, asked.bundle)
    description = SiteDescription(
        name=info.site,
        domain=key.domain,
        n=key.n,
        frames=info.frames,
        height=info.height,
        width=info.width,
        channels=info.channels,
        classes=info.classes,
        multi_label=info.multi_label,
        gaps=info.gaps,
        patch=info.patch,
        sequences=tuple(info.sequences.get(split, 0) for split in SPLITS),
        patients=tuple(info.patients.get(split, 0) for split in SPLITS),
    )
    proved = ConfigRecord({"proof": proof.to_json()})
    return RecordDict({messages.SITE: ConfigRecord(description.to_mapping()), messages.PROOF: proved})


@app.query(messages.INITIAL_WEIGHTS)
@answering
def initial_weights(asked: Asked) -> RecordDict:
    """Answer the state of round 0: of weights that the vault draws, or of the model that came along."""
    request = messages.InitialRequest.of(asked.content)
    part = _part(asked, request.run_spec)
    run_spec = request.run_spec
    if request.model == "":
        with VaultClient(asked.site.vault) as vault:
            rows: Rows = vault.initial_weights(run_spec.network, run_spec.seed, run_spec.dtype)
    else:
        rows = _model(part, messages.state_of(asked.content), sealed=request.model == "sealed").rows
    state = initial(
        rows,
        network=run_spec.network,
        domain=run_spec.domain,
        dtype=run_spec.dtype,
        classes=part.dataset.manifest.classes,
        rule=run_spec.rule,
        salt=secrets.token_hex(SALT_BYTES),
    )
    return RecordDict({messages.ARRAYS: ArrayRecord({messages.STATE: messages.pack_state(_closed(part, state))})})


@app.train()
@answering
def train(asked: Asked) -> RecordDict:
    """Train on the site's own ciphertext, and answer the update in words, if it passes the site's own gate.

    A question that was answered before, by a coordinator that died since, gets the same answer.
    """
    request = messages.TrainRequest.of(asked.content)
    part = _part(asked, request.run_spec)
    with part.memory.turn(request.round, request.attempt):
        before = _state(part, request.round - 1, request.base)
        of = local_round.round_of(part.run_spec, Position(part.nonce, request.round, request.attempt), before)
        question = json.dumps([of.to_json(), asked.policy.min_other_sites])  # the mask is for the company of then
        answer = part.memory.answer(question)
        if answer is None:
            answer = _trained(part, before, of)
            part.memory.keep_answer(question, answer)
    return answer


def _trained(part: Part, before: GlobalState, of: Round) -> RecordDict:
    trainer = _trainer(part.run_spec.network, part.key, part.run_spec.hyperparameters, part.run_spec.dtype)
    trainer.load(before.rows)
    again = (of.attempt,) if of.attempt > 1 else ()
    with figures_stay():
        trainer.fit(part.dataset, epochs=part.run_spec.epochs, seed=(part.run_spec.seed, of.number, *again))
    update = local_round.update_of(before, trainer.rows())
    update_check.require_update(before.rows, update, part.run_spec.max_norm)
    known = part.memory.loss_of(before)
    if known is not None:
        update_check.require_no_harm(
            known, _loss(_counts(part, trainer, "validation", of.number)), part.run_spec.max_loss_increase
        )
    examples = part.run_spec.weight(len(part.dataset.indices("train")))
    masked, mask = part.aggregation.mask(of, examples, local_round.encoded(part.run_spec, update, examples))
    return RecordDict(
        {
            messages.ARRAYS: ArrayRecord({messages.WORDS: Array(masked)}),
            messages.MASK: mask.to_record(),
            messages.ORIGIN: messages.Origin(part.run_spec.domain, of.to_json()).to_record(),
            messages.METRICS: MetricRecord({messages.EXAMPLES: examples}),
        }
    )


@app.evaluate()
@answering
def evaluate(asked: Asked) -> RecordDict:
    """Take the global model of a round from the sum of its updates, let the vault score it, and answer the counts.

    In the frame form without masking the coordinator may have made it, by a strategy of Flower. After the last round
    there is no sum: the state that came is scored, and kept for the site.
    """
    request = messages.EvaluateRequest.of(asked.content)
    stepped = messages.SUM in asked.content
    if stepped and request.split != "validation":  # its loss is what the next round's is compared to
        raise FederationError(f"a new model is judged on split validation, the request names {request.split}")
    if not stepped and request.split != "test":  # it would be kept as the run's final model
        raise FederationError(f"a model without a sum is scored on split test, the request names {request.split}")
    if not stepped and not _comes(asked.content):
        raise FederationError("the final model comes along, for the site to keep: the request names it alone")
    part = _part(asked, request.run_spec)
    before = _state(part, request.round - 1, request.base)
    if not stepped:
        counts = _scored(part, before, request)
        _keep_model(asked)
        part.memory.release()
        return RecordDict({messages.METRICS: MetricRecord(counts.to_mapping())})
    after = _advanced(part, before, request)
    judged = part.memory.judged(after)
    if judged is None:
        counts = _scored(part, after, request)
        verdict = _verdict(part, before, after, _loss(counts))
        judged = {"counts": counts.to_mapping(), "reason": verdict.reason}
        part.memory.keep(after, _loss(counts), judged)
    answer = RecordDict(
        {
            messages.METRICS: MetricRecord(judged["counts"]),
            messages.VERDICT: messages.Verdict(after.digest, judged["reason"]).to_record(),
        }
    )
    sent = part.memory.held(after.digest)
    if sent is None:
        sent = _closed(part, after)
        part.memory.hold(after, sent)
    if request.keep:
        answer[messages.ARRAYS] = ArrayRecord({messages.STATE: messages.pack_state(sent)})
    return answer


@app.query(messages.LOCAL_BASELINE)
@answering
def local_baseline(asked: Asked) -> RecordDict:
    """Train from fresh weights on this site's data alone, as long as the run, and answer the test counts of that."""
    request = messages.LocalBaselineRequest.of(asked.content)
    part = _part(asked, request.run_spec)
    question = json.dumps(["local-baseline", part.run_spec.to_json(), request.rounds])
    with part.memory.turn(request.rounds + 1, 1):
        answer = part.memory.answer(question)
        if answer is None:
            with VaultClient(part.asked.site.vault) as vault:
                rows: Rows = vault.initial_weights(part.run_spec.network, part.run_spec.seed, part.run_spec.dtype)
            trainer = _trainer(part.run_spec.network, part.key, part.run_spec.hyperparameters, part.run_spec.dtype)
            for number in range(1, request.rounds + 1):  # with the breaks of rounds: each begins with fresh moments
                trainer.load(rows)
                with figures_stay():
                    trainer.fit(part.dataset, epochs=part.run_spec.epochs, seed=(part.run_spec.seed, number))
                rows = trainer.rows()
            counts = _counts(part, trainer, "test", request.rounds + 2)
            answer = RecordDict({messages.METRICS: MetricRecord(counts.to_mapping())})
            part.memory.keep_answer(question, answer)
    return answer


def _scored(part: Part, state: GlobalState, request: messages.EvaluateRequest) -> AnyCounts:
    trainer = _trainer(part.run_spec.network, part.key, part.run_spec.hyperparameters, part.run_spec.dtype)
    trainer.load(state.rows)
    return _counts(part, trainer, request.split, request.round)


def _part(asked: Asked, run_spec: RunSpec) -> Part:
    """Return the site's part, after checking that the run's domain, network, company and masking fit the site."""
    key, dataset = _open(asked)
    if run_spec.domain != key.domain:
        raise DomainMismatchError(
            f"this site belongs to domain {key.domain[:16]}, the run to {run_spec.domain[:16]}: "
            "ask for a run of this domain, or join with the run's evaluation key"
        )
    if misfit := run_spec.network.misfit(Task.of(dataset.manifest)):
        raise FederationError(misfit)
    asked.policy.require_secure_aggregation(masked=run_spec.masked)
    participants = Participants.from_record(messages.record(asked.content, messages.PARTICIPANTS, ConfigRecord))
    membership = Membership(participants, asked.run, asked.bundle)
    asked.policy.require_participants(_others(asked, membership))
    aggregation = Masked(asked.site.vault, membership) if run_spec.masked else Clear()
    part = Part(asked, run_spec, key, dataset, participants.nonce, aggregation)
    part.memory.require_kind(masked=run_spec.masked)
    return part


def _state(part: Part, number: int, base: str) -> GlobalState:
    """Return the state of this round of this run: what came, which must be `base` if that is named, or is held here."""
    content = part.asked.content
    came = _comes(content) or not base
    sent = messages.state_of(content) if came else part.memory.held(base)
    if sent is None:
        raise FederationError(messages.LOST_BASE)
    state = GlobalState.from_bytes(part.aggregation.open(about(part.nonce, number), sent))
    local_round.require_state(part.run_spec, state, number)
    part.memory.require_same(state)
    if base not in {"", state.digest}:
        raise FederationError(
            f"the state of round {number} that came is not the one that the sites adopted, as the question names it: "
            "who sealed it runs another fedpp, or lies"
        )
    if came:
        part.memory.hold(state, sent)
    return state


def _comes(content: RecordDict) -> bool:
    """Tell whether a state comes along with a question."""
    return messages.STATE in messages.record(content, messages.ARRAYS, ArrayRecord)


def _closed(part: Part, state: GlobalState) -> bytes:
    return part.aggregation.close(about(part.nonce, state.round), state.to_bytes())


def _advanced(part: Part, before: GlobalState, request: messages.EvaluateRequest) -> GlobalState:
    """Return the state after the round: of the sum that came, or what the coordinator made of the updates."""
    if messages.AFTER in messages.record(part.asked.content, messages.ARRAYS, ArrayRecord):
        made = messages.state_of(part.asked.content, messages.AFTER)
        return local_round.given(part.run_spec, before, made, attempt=request.attempt)
    total = Aggregate.from_json(messages.text_of(part.asked.content, messages.SUM))
    of = local_round.round_of(part.run_spec, Position(part.nonce, request.round, request.attempt), before)
    words = messages.words_of(part.asked.content, of.ring.bits, of.length)
    clear = part.aggregation.unmask(of, total, words)
    return local_round.advanced(part.run_spec, before, total, clear, part.key.algebra(), attempt=request.attempt)


def _verdict(part: Part, before: GlobalState, after: GlobalState, loss: float | None) -> messages.Verdict:
    try:
        local_round.require_adoptable(part.run_spec, before, after)
        update_check.require_no_harm(part.memory.loss_of(before), loss, part.run_spec.max_loss_increase)
    except ModelError as error:
        _log.warning("round %d, attempt %d not adopted: %s", after.round, after.attempt, one_line(str(error)))
        return messages.Verdict(after.digest, told_of(error))
    return messages.Verdict(after.digest, "")


def _model(part: Part, sent: bytes, *, sealed: bool) -> GlobalState:
    """Return an earlier run's model, of the same domain, network and dtype."""
    if sealed:
        if not part.run_spec.masked:  # it would leave the site in clear
            raise FederationError("a sealed model needs secure aggregation: set secure-aggregation=true")
        with VaultClient(part.asked.site.vault) as vault:
            said, sent = vault.open(sent)
        if part.nonce in said:  # which would let a site see two sums of one round
            raise FederationError("the model to go on from is a state of this run, which has its own")
    model, run_spec = GlobalState.from_bytes(sent), part.run_spec
    if (model.domain, model.network, model.dtype) != (run_spec.domain, run_spec.network, run_spec.dtype):
        raise FederationError(
            "the model to go on from is of another domain, network or dtype than the run: take that model's settings"
        )
    if model.classes != part.dataset.manifest.classes:
        raise FederationError(f"the model to go on from tells {', '.join(model.classes)}: ingest alike")
    return model


def _counts(part: Part, trainer: "EncryptedTrainer", split: str, number: int) -> AnyCounts:
    with figures_stay():
        logits = trainer.logits(part.dataset, part.dataset.indices(split))
    with VaultClient(part.asked.site.vault) as vault:
        return vault.score(split, logits, part.asked.run, number)


def _loss(counts: AnyCounts) -> float | None:
    return metrics(counts).loss


def _keep_model(asked: Asked) -> None:
    """Keep the final model as it came, sealed or not, where `fedpp-site pull` finds it."""
    replace(asked.site.work / "models" / f"{asked.run}.state", messages.state_of(asked.content), mode=0o640)


def _open(asked: Asked) -> tuple[AnyKey, EncryptedDataset]:
    dataset = EncryptedDataset.open_with(asked.site.dataset, asked.site.at_rest_key)
    asked.policy.require_dataset(dataset.manifest.fingerprint)
    return open_key(asked.site.evaluation_key, dataset.manifest), dataset


def _others(asked: Asked, membership: Membership) -> int:
    """Return how many other members take part; each must have proved itself."""
    with VaultClient(asked.site.vault) as vault:
        info = vault.info()
    card = DomainCard.from_json(info.card)
    nonce = membership.participants.nonce
    run = Run(card.certifying_key, card.fingerprint, nonce, membership.run, membership.bundle)
    return membership.participants.others(info.site, run, datetime.now(UTC))


# A simulation's processes live through all rounds and sites; tracing the network again takes seconds.
@lru_cache(maxsize=1)
def _trainer(network: ModelSpec, key: AnyKey, hyperparameters: Hyperparameters, dtype: Dtype) -> "EncryptedTrainer":
    from fedpp.learning.encrypted_training import EncryptedTrainer

    return EncryptedTrainer(network, key.algebra(), hyperparameters, dtype)
