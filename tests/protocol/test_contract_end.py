"""End of a run contract: a vault joins no run that has ended, nor one that lasts longer than its site allows."""

from datetime import UTC, datetime

import pytest
from run_contracts import EXPIRES, Cohort

from fedpp.errors import FederationError
from fedpp.protocol.membership import CLOCK_SKEW
from fedpp.protocol.run_contract import VALIDITY

DAY = 86400


@pytest.mark.parametrize(
    ("left", "days", "current"),
    [
        (1, VALIDITY.days, True),
        (0, VALIDITY.days, False),
        (3 * DAY, 3, True),
        (3 * DAY + CLOCK_SKEW.seconds, 3, True),
        (3 * DAY + CLOCK_SKEW.seconds + 1, 3, False),
        (3 * DAY + CLOCK_SKEW.seconds + 1, 4, True),
    ],
)
def test_a_contract_is_good_for_so_many_days(left: int, days: int, current: bool) -> None:
    """It may end within the days that a site allows, give or take the difference of two clocks, and not later."""
    contract, now = Cohort.of(3).contract, datetime.fromtimestamp(EXPIRES - left, UTC)
    if current:
        contract.require_current(now, days)
    else:
        with pytest.raises(FederationError, match=f"a contract is made for {days} days at most"):
            contract.require_current(now, days)
