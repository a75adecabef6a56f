"""Methods of the vault: public facts, encrypted initial weights, proofs of membership, evaluation counts, and masks.

Masked runs are in `vault_runs`. Whoever chooses the predictions can read labels, and any row of the domain,
from the counts (docs/explanation/threats.md): access to the vault is read access, which `EvaluationLimits` bound. It
counts whole splits only, in the dataset's order. No TensorFlow is loaded here.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from fedpp.config.hyperparameters import DTYPES
from fedpp.config.model_spec import ModelSpec
from fedpp.config.run_config import SPLITS
from fedpp.config.site_policy import EvaluationLimits, SitePolicy, today
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import DomainMismatchError, VaultError
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.protocol.coordinator_identity import CoordinatorIdentity
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.membership import PROTOCOL, Proof, Statement
from fedpp.vault_api import chunks, vault_pb2, vault_pb2_grpc

from .audit.audit_chain import NO_LINE
from .audit.audit_log import AuditLog
from .evaluation_limits import (
    MAX_PROOFS,
    MAX_RUN_CHARACTERS,
    EvaluationAllowance,
    EvaluationCall,
    ProofAllowance,
    is_run,
    past_evaluation,
    past_proof,
)
from .masked_runs.run_journal import RunJournal
from .masked_runs.run_limits import MAX_VALUES
from .masked_runs.run_member import RunMember
from .masked_runs.run_site import LogHead
from .memory_budget import MemoryBudget
from .peer_check import Peer
from .split_counts import SplitCounts
from .vault_calls import Call, record_refused, recording
from .vault_runs import VaultRuns

MEMORY_BYTES = 2**29  # for the arrays of all running calls of a method
MEMORY_SECONDS = 60.0  # longest wait for free memory

# Copies of a reply's values in memory while it is computed: measured, and rounded up.
_COPIES_OF_WEIGHTS, _COPIES_OF_LOGITS = 4, 8
_PUBLIC_FACTS = (
    *("domain", "dtype", "frames", "height", "width", "channels"),
    *("classes", "multi_label", "gaps", "patch"),
)


@dataclass(frozen=True)
class History:
    """Earlier calls that count towards the limits, as an audit log records them."""

    evaluations: list[EvaluationCall] = field(default_factory=list)
    proofs: deque[datetime] = field(default_factory=lambda: deque(maxlen=MAX_PROOFS))

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one record of the log."""
        self.evaluations.extend(past_evaluation(record))
        self.proofs.extend(past_proof(record))


class VaultService(vault_pb2_grpc.VaultServicer):
    """Replies as one site, for its domain and one dataset."""

    def __init__(
        self,
        site: Site,
        dataset: EncryptedDataset,
        *,
        policy: Path | None = None,
        audit: AuditLog | None = None,
        past: History | None = None,
        read_only: bool = False,
        journal: RunJournal | None = None,
    ) -> None:
        """Check that all belong together, and read every byte of the dataset; raise `DatasetError` if it is damaged.

        `past` evaluations and proofs count towards the limits. Without a journal the vault takes part in no masked run.
        """
        card = site.domain.card()
        if dataset.manifest.domain != card.fingerprint:
            raise DomainMismatchError(
                f"the dataset belongs to domain {dataset.manifest.domain[:16]}, the vault's domain is "
                f"{card.fingerprint[:16]}: serve the dataset that was ingested under this domain"
            )
        site.require_certified()
        if policy is not None:
            SitePolicy.load(policy).require_dataset(dataset.manifest.fingerprint)
        dataset.verify()
        self._site, self._domain, self._dataset = site, site.domain, dataset
        past = past or History()
        self._policy, self._allowance, self._read_only = policy, EvaluationAllowance(past.evaluations), read_only
        self._audit, self._proofs = audit, ProofAllowance(past.proofs)
        self._counts = SplitCounts(site.domain, dataset)
        # A budget for each: weights are held until their caller has read them, and must not delay evaluations.
        self._weights_memory, self._logits_memory = (MemoryBudget(MEMORY_BYTES, MEMORY_SECONDS) for _ in range(2))
        self._info = _info(site.domain, dataset, site.identity.name)
        self.runs = None if journal is None else self._runs(journal)

    def _runs(self, journal: RunJournal) -> VaultRuns:
        member = RunMember(self._site, self._dataset, journal, policy=self._require_policy, log_head=self._log_head)
        return VaultRuns(member, self._record, self._require_writing)

    @property
    def healthy(self) -> bool:
        """Tell whether the vault can reply: it cannot while it cannot log."""
        return self._audit is None or self._audit.writable

    def refused(self, peer: Peer, connections: int) -> None:
        """Record a user that may not connect, and how many connections were refused since the last record."""
        record_refused(str(peer), connections, self._record)

    def Info(  # noqa: N802  gRPC's name
        self, request: vault_pb2.InfoRequest, context: grpc.ServicerContext
    ) -> vault_pb2.InfoReply:
        """Reply with the public facts."""
        del request
        with recording("Info", context, self._record) as call:
            call.reply(self._info.ByteSize(), samples=len(self._dataset))
            return self._info

    def InitialWeights(  # noqa: N802
        self, request: vault_pb2.InitialWeightsRequest, context: grpc.ServicerContext
    ) -> Iterator[vault_pb2.ArrayChunk]:
        """Stream encrypted initial weights."""
        with recording("InitialWeights", context, self._record) as call:
            self._require_writing()
            self._require_policy()
            network = self._fitting(ModelSpec.from_json(request.network))
            if request.dtype not in DTYPES:
                raise VaultError(f"rows are float32 or float64, got {request.dtype!r:.40}")
            values = network.parameters() * self._domain.n
            with self._weights_memory.taking(_COPIES_OF_WEIGHTS * values * 8):
                seed = self._domain.initial_seed(request.seed)
                rows = encrypted_initial_weights(network, seed, self._domain.computing_key())
                call.reply(values * np.dtype(request.dtype).itemsize, parameters=network.parameters())
                for name, array in rows.items():
                    yield from chunks.to_chunks(name, array.astype(request.dtype))

    def Sign(  # noqa: N802
        self, request: vault_pb2.SignRequest, context: grpc.ServicerContext
    ) -> vault_pb2.SignReply:
        """Reply with the site's proof of membership for one run."""
        with recording("Sign", context, self._record) as call:
            self._require_writing()
            self._require_policy(request.bundle)
            if request.protocol != PROTOCOL:
                raise VaultError(
                    f"the run speaks protocol {request.protocol}, this vault {PROTOCOL}: use one fedpp everywhere"
                )
            manifest, now = self._dataset.manifest, datetime.now(UTC)
            statement = Statement(
                nonce=request.nonce,
                run=request.run,
                time=int(now.timestamp()),
                protocol=PROTOCOL,
                domain=manifest.domain,
                site=self._site.identity.name,
                dataset=manifest.fingerprint,
                bundle=request.bundle,
                coordinator=CoordinatorIdentity.from_json(request.coordinator),
            )
            self._proofs.admit(now)
            signature = self._site.identity.sign("statement", statement.content())
            reply = vault_pb2.SignReply(proof=Proof(statement, signature, self._site.certificate).to_json())
            call.reply(
                reply.ByteSize(),
                nonce=request.nonce,
                run=request.run,
                bundle=request.bundle,
                coordinator=str(statement.coordinator),
            )
            return reply

    def Evaluate(  # noqa: N802
        self, requests: Iterator[vault_pb2.EvaluateRequest], context: grpc.ServicerContext
    ) -> vault_pb2.EvaluateReply:
        """Reply with the evaluation counts of a split's predictions."""
        with recording("Evaluate", context, self._record) as call:
            first = next(requests, vault_pb2.EvaluateRequest())
            limits = self._require_policy().evaluation
            if first.split not in SPLITS:
                raise VaultError(f"there is no split {first.split!r:.40}: choose one of {', '.join(SPLITS)}")
            if not is_run(first.run):
                raise VaultError(f"a run is at most {MAX_RUN_CHARACTERS} printable characters, got {first.run!r:.80}")
            call.add(split=first.split, run=first.run, round=first.round)
            admitted = EvaluationCall(datetime.now(UTC), first.run, first.round, first.split)
            self._allowance.admit(admitted, self._info.patients[first.split], limits)
            # A record with samples is of a call that was admitted: `past_evaluation`.
            call.add(samples=self._info.sequences[first.split])
            counts = self._count(call, first.split, (request.logits for request in requests), limits)
            several = isinstance(counts, FindingCounts)
            of_each = counts.findings if isinstance(counts, FindingCounts) else (counts,)
            reply = vault_pb2.EvaluateReply(
                examples=counts.examples, multi_label=several, counts=[_message(counts) for counts in of_each]
            )
            call.reply(reply.ByteSize())
            return reply

    def _record(self, facts: Mapping[str, Any]) -> None:
        if self._audit is not None:
            self._audit.append(facts)

    def _log_head(self) -> LogHead:
        return (0, NO_LINE) if self._audit is None else self._audit.head

    def _require_writing(self) -> None:
        if self._read_only:
            raise VaultError("this vault is read-only, and makes nothing new under a key: start it without --read-only")

    def _require_policy(self, bundle: str | None = None) -> SitePolicy:
        """Read the policy's file, refuse what it does not allow, and return it."""
        if self._policy is None:
            return SitePolicy(bundles=(), datasets=())
        policy = SitePolicy.load(self._policy)
        policy.require_current(today())
        policy.require_dataset(self._info.dataset)
        if bundle is not None:
            policy.require_bundle(bundle)
        return policy

    def _fitting(self, network: ModelSpec) -> ModelSpec:
        if misfit := network.misfit(self._dataset.manifest.task):
            raise VaultError(misfit)
        if network.parameters() * self._domain.n > MAX_VALUES:
            raise VaultError(
                f"a network of {network.parameters()} parameters of {self._domain.n} slots is too large: "
                f"at most {MAX_VALUES // self._domain.n}"
            )
        return network

    def _count(
        self, call: Call, split: str, stream: Iterator[vault_pb2.ArrayChunk], limits: EvaluationLimits
    ) -> AnyCounts:
        self._dataset.labels(self._dataset.indices(split)[:0])  # refuses a dataset without labels
        expected = self._counts.shape(split)
        header = next(stream, vault_pb2.ArrayChunk())
        with self._logits_memory.taking(_COPIES_OF_LOGITS * int(np.prod(expected)) * 8):
            if tuple(header.shape) != expected:  # before any data are read
                raise VaultError(
                    f"logits of split {split} must be rows of shape {expected}, got {tuple(header.shape[:8])}: "
                    "predict the dataset that this vault serves"
                )
            logits = self._logits(chain([header], stream))
            return self._counts.count(split, logits, limits.min_patients, lambda few: call.add(withheld=few))

    @staticmethod
    def _logits(stream: Iterator[vault_pb2.ArrayChunk]) -> NDArray[np.floating]:
        arrays = chunks.from_chunks(stream)
        _, rows = next(arrays)
        if next(arrays, None) is not None:
            raise VaultError("logits are one array, got more")
        return rows


def _info(domain: KeyDomain, dataset: EncryptedDataset, site: str) -> vault_pb2.InfoReply:
    m = dataset.manifest
    return vault_pb2.InfoReply(
        **{name: getattr(m, name) for name in _PUBLIC_FACTS},
        dataset=m.fingerprint,
        sequences=dataset.counts(),
        patients=dataset.patients(),
        card=domain.card().to_json(),
        site=site,
    )


def _message(counts: Counts) -> vault_pb2.Counts:
    return vault_pb2.Counts(
        examples=counts.examples,
        loss_sum=counts.loss_sum,
        confusion=[cell for row in counts.confusion for cell in row],
        positive_scores=counts.positive_scores,
        negative_scores=counts.negative_scores,
    )
