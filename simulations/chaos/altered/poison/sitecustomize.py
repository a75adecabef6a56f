"""What makes a site lie: on its Python's path, it alters the update that the site's launcher sends.

Which lie is told stands in `FEDPP_POISON`. Nothing of the approved bundle is changed: whoever owns a machine can send
from it what he likes.
"""

import json
import os
from pathlib import Path
from typing import Any

from after_import import after_import  # type: ignore[import-not-found]  # beside which this folder is on the path

SENDER = "flwr.supernode.runtime.run_clientapp"
LIE = os.environ.get("FEDPP_POISON", "")
OTHER = os.environ.get("FEDPP_POISON_DOMAIN", "")  # fingerprint of another domain, or of another epoch
KEPT = Path(os.environ.get("FEDPP_POISON_KEPT", "kept"))  # folder of old updates, to be sent again


def lying(module: Any) -> None:
    """Wrap the function that sends answers."""
    honest = module.push_message

    def push_message(client: Any, message: Any, context: Any) -> Any:
        if message.has_content() and "origin" in message.content:
            lie(message.content)
        return honest(client, message, context)

    module.push_message = push_message


def lie(content: Any) -> None:
    """Alter the content of an update."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

    words = content["arrays"]["words"].numpy()
    of = json.loads(content["origin"]["round"])
    junk = {
        "nan": np.full(words.shape, np.nan),
        "inf": np.full(words.shape, np.inf),
        "shape": words[:-1],
        "one": words[:1],
        "dtype": words.astype("<u4" if words.itemsize == 8 else "<u8"),
        "garbage": np.frombuffer(os.urandom(words.nbytes), words.dtype),
    }
    if LIE in junk:
        content["arrays"] = ArrayRecord({"words": Array(np.ascontiguousarray(junk[LIE]))})
    elif LIE == "nan later" and of["number"] > 1:
        content["arrays"] = ArrayRecord({"words": Array(junk["nan"])})
    elif LIE == "examples":
        content["metrics"] = MetricRecord({"num-examples": 10**12})
    elif LIE in {"domain", "epoch"}:
        content["origin"] = ConfigRecord({**content["origin"], "domain": OTHER})
    elif LIE == "old run":
        replay(content, KEPT / "words")
    elif LIE == "old round":
        replay(content, KEPT / of["run"])


def replay(content: Any, kept: Path) -> None:
    """Send what was kept there again, as it was; the first update is kept, and sent honestly."""
    from flwr.app import Array, ArrayRecord, ConfigRecord

    words = content["arrays"]["words"]
    facts = kept.with_suffix(".facts")
    if not kept.exists():
        KEPT.mkdir(exist_ok=True)
        kept.write_bytes(words.data)
        facts.write_text(json.dumps([dict(content["mask"]), dict(content["origin"])]))
        return
    mask, origin = json.loads(facts.read_text())
    old = Array(words.dtype, tuple(words.shape), words.stype, kept.read_bytes())
    content["arrays"] = ArrayRecord({"words": old})
    content["mask"], content["origin"] = ConfigRecord(mask), ConfigRecord(origin)


if LIE:
    after_import(SENDER, lying)
