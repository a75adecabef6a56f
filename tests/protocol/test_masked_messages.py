"""What a message of a masked run may hold: requests within bounds, arrays and texts that are what they say."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedpp.config.site_policy import request_of
from fedpp.errors import FederationError, MissingLinksError
from fedpp.protocol import masked_messages as masked
from fedpp.protocol import messages
from fedpp.protocol.state_certificate import LACKS_STATE

DIGEST = "ab" * 32
KINDS = [
    value for name, value in vars(masked).items() if name.isupper() and str(value).startswith(("query.", "train."))
]
REQUESTS = [
    masked.AcceptRunRequest("{}", ("one", "two")),
    masked.ContractRequest(DIGEST),
    masked.StatementsRequest(DIGEST, ()),
    masked.RoundRequest(DIGEST, ("one",), 1),
    masked.ReleaseRequest(DIGEST, ("one", "two"), 2, "cd" * 32),
    masked.StepRequest(DIGEST, (), 3, ("ab", "cdef")),
    masked.WhereRequest(DIGEST),
]


@pytest.fixture(autouse=True)
def _in_a_run() -> None:
    """Make Flower believe that messages are made inside a run, as in its processes."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_survives_its_record(request_: messages.OfContent) -> None:
    """What `to_record` returned is read as it was."""
    content = RecordDict({messages.CONFIG: request_.to_record()})
    assert type(request_).read(content) == request_


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (masked.ContractRequest, {"contract": "ab"}),
        (masked.StatementsRequest, {"statements": "one"}),
        (masked.RoundRequest, {"round": 0}),
        (masked.ReleaseRequest, {"sum_hash": ""}),
        (masked.StepRequest, {"sealed": ["a"]}),
        (masked.StepRequest, {"sealed": []}),
        (masked.StepRequest, {"attempt": 2}),
        (masked.WhereRequest, {"nonce": "AB" * 32}),
    ],
)
def test_a_request_with_another_value_is_refused(kind: type[messages.OfContent], change: dict[str, object]) -> None:
    """A value out of bounds, or an unknown one, refuses the request in one line."""
    (valid,) = (request for request in REQUESTS if type(request) is kind)
    with pytest.raises(FederationError, match="the coordinator's request does not fit: ") as raised:
        kind.read(RecordDict({messages.CONFIG: ConfigRecord({**valid.to_mapping(), **change})}))
    assert str(raised.value).isprintable()


def test_arrays_come_out_as_they_went_in() -> None:
    """A masked update and an exact sum keep each word; other lengths and widths are refused."""
    words, carry = np.arange(5, dtype=np.uint64), np.arange(5, dtype=np.uint16)
    masked_update = masked.stated("text", arrays={masked.MASKED: Array(words)})
    np.testing.assert_array_equal(masked.masked_of(masked_update, 64, 5), words)
    assert masked.statement_of(masked_update) == "text"
    content = RecordDict({messages.ARRAYS: masked.summed(words, carry)})
    low, high = masked.sum_of(content, 64, 5)
    np.testing.assert_array_equal(low, words)
    np.testing.assert_array_equal(high, carry)
    for bits, length in ((32, 5), (64, 6)):
        with pytest.raises(FederationError, match="low"):
            masked.sum_of(content, bits, length)
    with pytest.raises(FederationError, match="without masked"):
        masked.masked_of(RecordDict({messages.ARRAYS: ArrayRecord()}), 64, 5)


def test_texts_come_out_as_they_went_in() -> None:
    """A sealed seed and a list of statements are read as they were; others are refused."""
    assert masked.seed_of(masked.stated("text", b"\x01\xff")) == "01ff"
    found = masked.all_stated(["one", "two"], ["three"])
    assert (masked.statements_of(found), masked.statements_of(found, "contracts")) == (["one", "two"], ["three"])
    for content in (masked.stated("text"), RecordDict({"statement": ConfigRecord({"seed": "0"})})):
        with pytest.raises(FederationError, match="sealed seed"):
            masked.seed_of(content)
    with pytest.raises(FederationError, match="without statements"):
        masked.statements_of(RecordDict({"statements": ConfigRecord({"statements": [1]})}))


def test_what_a_site_lacks_is_told_from_other_refusals() -> None:
    """Each of the two refusals that are made up for is recognised, also within other words, and no other one."""
    request = Message(RecordDict(), dst_node_id=1, message_type=masked.STEP)
    links = str(MissingLinksError({"West": 3}))
    replies = [messages.refuse(f"its vault: {reason}", request) for reason in (links, LACKS_STATE, "it is ill")]
    replies.append(Message(masked.stated("text"), reply_to=request))
    assert [masked.missing_links(reply) for reply in replies] == [{"West": 3}, None, None, None]
    assert [masked.lacks_state(reply) for reply in replies] == [False, True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_flower_takes_each_kind_of_message(kind: str) -> None:
    """Flower accepts the types of these messages."""
    assert Message(RecordDict(), dst_node_id=1, message_type=kind).metadata.message_type == kind


def test_a_policy_that_allows_training_allows_masked_rounds() -> None:
    """Each kind of message is one of the requests that a `site.yaml` may allow."""
    assert {kind: request_of(kind) for kind in KINDS} == {
        kind: "evaluate" if kind == masked.REPORT else "train" for kind in KINDS
    }
