"""Bundle of another project, whose ServerApp and ClientApp do what a test asks for."""

import json
import time
from pathlib import Path

from conftest import ROOT

PYPROJECT = """\
[project]
name = "stranger"
version = "1.0.0"
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "stranger"
[tool.flwr.app.components]
serverapp = "stranger.server:app"
clientapp = "stranger.client:app"
"""
SERVER = """\
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    for number, faults in enumerate({queries!r}, 1):
        while not Path({folder!r}, f"query {{number}}").exists():
            time.sleep(0.1)
        requests = [
            Message(RecordDict({{"fault": ConfigRecord({{"fault": fault}})}}), node, "query.describe")
            for fault in faults for node in nodes
        ]
        replies = [
            [reply.error.reason] if reply.has_error() else dict(reply.content["reply"])
            for reply in grid.send_and_receive(requests, timeout=240)
        ]
        Path({folder!r}, "part").write_text(json.dumps(replies))
        Path({folder!r}, "part").rename(Path({folder!r}, f"replies {{number}}"))
"""
CLIENT = """\
import asyncio, os, shutil, sys
from pathlib import Path
import numpy
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
import fedpp

Path({folder!r}, f"ran {{os.getpid()}}").touch()
app = ClientApp()


@app.query("describe")
def describe(message, context):
    fault = message.content["fault"]["fault"]
    ours = "fedpp.config.site_policy" in sys.modules or {root!r} in sys.path
    facts = {{"bundle": os.environ["FEDPP_BUNDLE"], "fedpp": fedpp.WHOSE, "ours": ours}}
    drawn = {{"node": context.node_id, "fault": fault, "drawn": numpy.random.random()}}
    reply = Message(RecordDict({{"reply": ConfigRecord(facts | drawn)}}), reply_to=message)
    if fault == "cancelled":
        raise asyncio.CancelledError({folder!r})
    if fault == "no message":
        return {folder!r}
    if fault == "a message that cannot be sent":
        reply.metadata.__dict__["_ttl"] = {folder!r}
    if fault == "a state that cannot be kept":
        context.node_config["x"] = object()
    if fault == "no folder":
        own = Path(__file__).parents[1]
        shutil.rmtree(own)
        own.touch()
    return reply
"""


def stranger(folder: Path, queries: list[list[str]]) -> Path:
    """Write an app whose ServerApp sends each query, a message to all nodes for each fault; return its project."""
    for name, text in {
        "pyproject.toml": PYPROJECT,
        "fedpp/__init__.py": 'WHOSE = "the bundle\'s"\n',
        "stranger/__init__.py": "",
        "stranger/server.py": SERVER.format(folder=str(folder), queries=queries),
        "stranger/client.py": CLIENT.format(folder=str(folder), root=str(ROOT)),
    }.items():
        (folder / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "app" / name).write_text(text)
    return folder / "app"


def replies(folder: Path, number: int) -> list[dict[str, object] | list[str]]:
    """Let the app's ServerApp send a query to all sites, and return their replies: records, or reasons of errors."""
    (folder / f"query {number}").touch()
    deadline = time.monotonic() + 300
    while not (folder / f"replies {number}").is_file():
        assert time.monotonic() < deadline, [log.read_text() for log in folder.glob("*.log")]
        time.sleep(0.1)
    found: list[dict[str, object] | list[str]] = json.loads((folder / f"replies {number}").read_text())
    return found
