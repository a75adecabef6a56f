"""Three vaults and a plain coordinator, from the contract to the certificate of the end."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from run_hospitals import DOMAIN, Coordinator, Hospital, contract_of, opened

from fedpp.aggregation.global_state import unflat
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import mean_bound, site_bound
from fedpp.aggregation.server_step import step
from fedpp.aggregation.step_bounds import clipped, scaled
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.state_certificate import StateCertificate
from fedpp.protocol.statement_chains import StatementChains


@pytest.fixture
def cohort(tmp_path: Path) -> Iterator[list[Hospital]]:
    """Return three hospitals."""
    with opened(tmp_path) as made:
        yield made


def test_a_masked_run_is_averaging_in_clear_bit_for_bit(cohort: list[Hospital]):
    """From S1 to the end: all vaults sign one state, that of averaging the encoded updates without any mask."""
    run = Coordinator(cohort, contract_of(cohort, rounds=2)).begin()
    contract, network, algebra = run.contract, run.contract.spec.network, DOMAIN.evaluation_key().algebra()
    state, ring = run.stages()[0].state, ring_of(run.contract.spec)
    for number in (1, 2):
        total = np.zeros(network.parameters() * DOMAIN.n, np.int64)
        for of in cohort:
            rows, _ = clipped(unflat(of.update(number), network, DOMAIN.n), algebra, site_bound(contract, 6))
            flat = np.concatenate([rows[spec.name].reshape(-1) for spec in network.weights()])
            total += np.rint(flat * (6 * 2.0**ring.fraction)).astype(np.int64)
        mean, _ = scaled(unflat(total / (18 * 2.0**ring.fraction), network, DOMAIN.n), algebra, mean_bound(contract))
        state = step(state, mean, contract.spec.server_optimizer, algebra)
    ends = run.finish()
    assert {end.state.to_bytes() for end in ends} == {state.to_bytes()}
    assert {end.due for end in ends} == {"end"}
    chains = StatementChains(contract, {of.name: of.site.certificate for of in cohort})
    chains.take([SignedStatement.from_json(text) for text in run.statements])
    certificate = StateCertificate.made_of(contract, chains.of("step", 4).values())
    assert certificate.signers == ("East", "North", "South")
