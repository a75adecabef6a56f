"""Alteration of a site that sends forged updates: on its Python path, it alters what the site's launcher sends.

`FEDPP_POISON` names the forgery. The approved bundle is unchanged: the owner of a machine can send anything from it.
"""

import json
import os
from pathlib import Path
from typing import Any

from after_import import after_import  # type: ignore[import-not-found]  # beside which this folder is on the path

SENDER = "flwr.supernode.runtime.run_clientapp"
FORGERY = os.environ.get("FEDPP_POISON", "")
OTHER = os.environ.get("FEDPP_POISON_DOMAIN", "")  # fingerprint of another domain, or of another key epoch
KEPT = Path(os.environ.get("FEDPP_POISON_KEPT", "kept"))  # folder of earlier updates, to be replayed


def alter(module: Any) -> None:
    """Wrap the function that sends replies."""
    honest = module.push_message

    def push_message(client: Any, message: Any, context: Any) -> Any:
        if message.has_content() and "origin" in message.content:
            forge(message.content)
        elif message.has_content() and "masked" in message.content.array_records.get("arrays", {}):
            forge_masked(message.content)
        return honest(client, message, context)

    module.push_message = push_message


def forge(content: Any) -> None:
    """Alter the content of an update."""
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

    junk, of = junk_like(content["arrays"]["words"].numpy()), json.loads(content["origin"]["round"])
    if FORGERY in junk:
        content["arrays"] = ArrayRecord({"words": junk[FORGERY]})
    elif FORGERY == "nan later" and of["number"] > 1:
        content["arrays"] = ArrayRecord({"words": junk["nan"]})
    elif FORGERY == "examples":
        content["metrics"] = MetricRecord({"num-examples": 10**12})
    elif FORGERY in {"domain", "epoch"}:
        content["origin"] = ConfigRecord({**content["origin"], "domain": OTHER})
    elif FORGERY == "old run":
        replay(content, KEPT / "words")
    elif FORGERY == "old round":
        replay(content, KEPT / of["run"])


def junk_like(update: Any) -> dict[str, Any]:
    """Return arrays that no update may be, by the name of the forgery."""
    import numpy as np
    from flwr.app import Array

    arrays = {
        "nan": np.full(update.shape, np.nan),
        "inf": np.full(update.shape, np.inf),
        "shape": update[:-1],
        "one": update[:1],
        "dtype": update.astype("<u4" if update.itemsize == 8 else "<u8"),
        "garbage": np.frombuffer(os.urandom(update.nbytes), update.dtype),
    }
    return {name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()}


def forge_masked(content: Any) -> None:
    """Alter the content of a masked update, which its statement has the hash of."""
    from flwr.app import ArrayRecord

    junk = junk_like(content["arrays"]["masked"].numpy())
    if FORGERY in junk:
        content["arrays"] = ArrayRecord({"masked": junk[FORGERY]})
    elif FORGERY in {"old run", "old round"}:
        statement = json.loads(content["statement"]["statement"])["statement"]
        replay_masked(content, KEPT / ("masked" if FORGERY == "old run" else statement["contract"]))


def replay_masked(content: Any, kept: Path) -> None:
    """Replace update and statement by those kept in `kept`; the first ones are kept, and sent unchanged."""
    from flwr.app import Array, ArrayRecord, ConfigRecord

    update, facts = content["arrays"]["masked"], kept.with_suffix(".statement")
    if not kept.exists():
        KEPT.mkdir(exist_ok=True)
        kept.write_bytes(update.data)
        facts.write_text(content["statement"]["statement"])
        return
    old = Array(update.dtype, tuple(update.shape), update.stype, kept.read_bytes())
    content["arrays"] = ArrayRecord({"masked": old})
    content["statement"] = ConfigRecord({"statement": facts.read_text()})


def replay(content: Any, kept: Path) -> None:
    """Replace the update by the one kept in `kept`; the first update is kept, and sent unchanged."""
    from flwr.app import Array, ArrayRecord, ConfigRecord

    update = content["arrays"]["words"]
    facts = kept.with_suffix(".facts")
    if not kept.exists():
        KEPT.mkdir(exist_ok=True)
        kept.write_bytes(update.data)
        facts.write_text(json.dumps(dict(content["origin"])))
        return
    old = Array(update.dtype, tuple(update.shape), update.stype, kept.read_bytes())
    content["arrays"] = ArrayRecord({"words": old})
    content["origin"] = ConfigRecord(json.loads(facts.read_text()))


if FORGERY:
    after_import(SENDER, alter)
