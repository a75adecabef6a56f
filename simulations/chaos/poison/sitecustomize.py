"""What makes a site lie: on its Python's path, it alters the update that the site's launcher sends.

Which lie is told stands in `FEDPP_POISON`. Nothing of the approved bundle is changed: whoever owns a machine can send
from it what he likes.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

SENDER = "flwr.supernode.runtime.run_clientapp"
LIE = os.environ.get("FEDPP_POISON", "")
KEPT = Path(os.environ.get("FEDPP_POISON_KEPT", "kept"))  # an old update, to be sent again


class Liar(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module that sends answers, and wraps the function that does."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Find it, and load it by ourselves."""
        if name != SENDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> Any:
        """Leave it to the loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run it, and wrap the sender."""
        self._loader.exec_module(module)
        honest = module.push_message

        def push_message(client: Any, message: Any, context: Any) -> Any:
            if message.has_content() and "origin" in message.content:
                lie(message.content)
            return honest(client, message, context)

        module.push_message = push_message  # type: ignore[attr-defined]


def lie(content: Any) -> None:
    """Alter the content of an update."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

    words = content["arrays"]["words"].numpy()
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
    elif LIE == "examples":
        content["metrics"] = MetricRecord({"num-examples": 10**12})
    elif LIE in {"domain", "epoch"}:
        content["origin"] = ConfigRecord({**content["origin"], "domain": "e" * 64})
    elif LIE == "replay":
        replay(content)


def replay(content: Any) -> None:
    """Send the first update again, as it was."""
    from flwr.app import Array, ArrayRecord, ConfigRecord

    words = content["arrays"]["words"]
    if not KEPT.exists():
        KEPT.write_bytes(words.data)
        KEPT.with_suffix(".facts").write_text(json.dumps([dict(content["mask"]), dict(content["origin"])]))
        return
    mask, origin = json.loads(KEPT.with_suffix(".facts").read_text())
    old = Array(words.dtype, tuple(words.shape), words.stype, KEPT.read_bytes())
    content["arrays"] = ArrayRecord({"words": old})
    content["mask"], content["origin"] = ConfigRecord(mask), ConfigRecord(origin)


if LIE:
    sys.meta_path.insert(0, Liar())
