"""The list of attacks, by name."""

from collections.abc import Mapping

from .attack import Attack
from .count_attacks import COUNT_ATTACKS
from .deployed_attacks import DEPLOYED_ATTACKS
from .flood_attacks import FLOOD_ATTACKS
from .journal_attacks import JOURNAL_ATTACKS
from .mask_attacks import MASK_ATTACKS
from .membership_attacks import MEMBERSHIP_ATTACKS
from .model_attacks import MODEL_ATTACKS
from .opening_attacks import OPENING_ATTACKS
from .start_attacks import START_ATTACKS
from .sum_attacks import SUM_ATTACKS
from .weight_attacks import WEIGHT_ATTACKS

ATTACKS: Mapping[str, Attack] = {
    **WEIGHT_ATTACKS,
    **DEPLOYED_ATTACKS,
    **MASK_ATTACKS,
    **OPENING_ATTACKS,
    **SUM_ATTACKS,
    **START_ATTACKS,
    **MODEL_ATTACKS,
    **COUNT_ATTACKS,
    **JOURNAL_ATTACKS,
    **MEMBERSHIP_ATTACKS,
    **FLOOD_ATTACKS,
}
