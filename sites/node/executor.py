"""Executor of a site: takes tasks from the SuperNode, and starts one of our launchers for each.

It replaces Flower's `flower-superexec`, which would start `flwr-clientapp` and other programs that install and run any
bundle the coordinator names. The executor starts `sites.node.launcher` only, which checks the site's policy first. If a
Flower version changes the functions that both use, they fail to import or to call them, and nothing runs.

Each launcher is a process, forked from one that has imported TensorFlow and does nothing else: the import takes
seconds, about as long as a message of a small model. That process does not hold the secret by which tasks are taken.
"""

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import version
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from fedpp.errors import ConfigError

from .launch import ROOT, Launch

MAX_TASKS = 4  # at a time; others wait at the SuperNode
POLL_SECONDS = 0.2
EXIT_SECONDS = 6.0  # for launchers, which take 5 at most
IMPORTED = ("flwr.clientapp", "flwr.supernode.runtime.run_clientapp", "keras")  # nothing of a bundle, or of ours


def program(name: str) -> list[str]:
    """Return the command of a module of the sites, such as `node.executor`; no folder becomes importable by it."""
    package = (__package__ or "").rpartition(".")[0]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {package}.{name} import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", code]


def require_flower() -> None:
    """Raise `ConfigError` unless the installed Flower has the functions that executor and launcher use."""
    command = [*program("node.executor"), "--check"]
    tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise ConfigError(
            f"the site's policy cannot be enforced with Flower {version('flwr')}, so nothing may run: {reason}; "
            "install the Flower that this fedpp was made for"
        )


def main() -> int:
    """Run the executor until SIGTERM or SIGINT; return the exit status."""
    parser = argparse.ArgumentParser(prog="executor", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="only import the modules of executor, launcher and SuperNode"
    )
    for name in ("runtime", "secret", "policy", "refused", "work"):
        parser.add_argument(f"--{name}", default="")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _serve(options)
    except KeyboardInterrupt:
        return 0
    return 0


def _serve(options: argparse.Namespace) -> None:
    from fedpp.flower.task_runtime import acquirer, disable_process_dumping

    if options.check:
        for name in ("launcher", "supernode_process"):
            import_module(f".{name}", __package__)
        return
    disable_process_dumping(strict=False)  # the secret is for this process
    acquire = acquirer(options.runtime, Path(options.secret).read_bytes())
    launch = Launch(options.runtime, os.getpid(), Path(options.policy), Path(options.refused), Path(options.work))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    first = context.Process(target=os.getpid)  # a task must not wait for the imports
    first.start()
    first.join()
    running: list[ForkServerProcess] = []
    try:
        while True:
            running = [process for process in running if process.is_alive()]
            if len(running) < MAX_TASKS and (token := acquire()):
                launcher = context.Process(target=launch.run, args=(token,))
                launcher.start()
                running.append(launcher)
            time.sleep(POLL_SECONDS)
    finally:
        for process in running:
            process.terminate()
        for process in running:  # which Python would wait for without an end
            process.join(EXIT_SECONDS)
            process.kill()
