"""Hospitals and a coordinator as real processes: each hospital's secret zone and its trainer are users of their own.

That takes root, and a checkout and an interpreter that other users can reach: as root, what they cannot reach fails the
tests. Who is not root cannot start processes of other users: there everything runs as the one user there is. Every
process has the deployment's folder in its arguments or its environment, so none can hide when it should be gone.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

from coordinator.operator.flower_command import flower
from coordinator.operator.superlink import CONNECTION, State
from fedpp.processes import QUIET_FLOWER

SITE = [sys.executable, "-m", "sites"]
COORDINATOR = [sys.executable, "-m", "coordinator"]
PASSPHRASE = "correct horse battery staple"
MATPLOTLIB = f"{tempfile.gettempdir()}/fedpp-test-matplotlib"  # its cache of fonts takes seconds to make
START_SECONDS, STOP_SECONDS, CALL_SECONDS = 60, 30, 300


@dataclass(frozen=True)
class User:
    """A user of the operating system, or, where it is None, the one who runs the tests."""

    uid: int | None
    gid: int | None

    def options(self) -> dict[str, object]:
        """Return what makes `subprocess` start a program as this user, and without any other group."""
        if self.uid is None:
            return {}
        home = {**os.environ, "HOME": "/nonexistent", "MPLCONFIGDIR": f"{MATPLOTLIB}-{self.uid}"}
        return {"user": self.uid, "group": self.gid, "extra_groups": [], "env": home}

    def own(self, *paths: Path, mode: int | None = None) -> None:
        """Make paths this user's, of a mode if one is given."""
        for path in paths:
            if self.uid is not None and self.gid is not None:
                os.chown(path, self.uid, self.gid)
            if mode is not None:
                path.chmod(mode)

    def require_reach(self, checkout: Path = ROOT, interpreter: Path = Path(sys.executable)) -> None:
        """Assert that this user can run our programs."""
        command = [interpreter, "-c", "import os, sys; os.chdir(sys.argv[1]); import sites", checkout]
        try:
            done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **self.options())
            why = done.stderr if done.returncode else ""
        except PermissionError as error:
            why = str(error)
        assert not why, (
            f"user {self.uid} cannot reach {checkout} or {interpreter}: give others search "
            f"permission (chmod o+x) on all their parents, as .ci/run does: {why}"
        )

    def can_read(self, path: Path) -> bool:
        """Try it, as this user."""
        return not subprocess.run(["cat", path], capture_output=True, check=False, **self.options()).returncode


NOBODY_ELSE = User(None, None)
TWO_USERS = os.getuid() == 0


@dataclass(frozen=True)
class Hospital:
    """A hospital's folders: `secret` for its secret zone, `trainer` for its trainer, `shared` for both."""

    name: str
    folder: Path
    secret_zone: User
    trainer: User

    @classmethod
    def make(cls, name: str, folder: Path, number: int) -> "Hospital":
        """Make the folders, and the passphrase."""
        group = 20100 + number
        users = (User(group + 1000, group), User(group + 2000, group)) if TWO_USERS else (NOBODY_ELSE, NOBODY_ELSE)
        if TWO_USERS:
            users[1].require_reach()
        made = cls(name, folder / name, *users)
        for part, user, mode in (
            ("secret", users[0], 0o700),
            ("trainer", users[1], 0o700),
            ("shared", users[0], 0o2750),
        ):
            (made.folder / part).mkdir(parents=True)
            user.own(made.folder / part, mode=mode)
        made.passphrase.write_text(f"{PASSPHRASE} of {name}\n")
        users[0].own(made.passphrase, mode=0o600)
        return made

    @property
    def passphrase(self) -> Path:
        """Return the secret zone's passphrase file."""
        return self.folder / "secret" / "passphrase"

    @property
    def identity(self) -> Path:
        """Return the trainer's key pair for the SuperLink, in a folder."""
        return self.folder / "trainer" / "identity"

    def policy(self, epoch: int) -> Path:
        """Return what the site allows, in a file of a name with spaces and quotes."""
        return self.folder / "shared" / f'policy {epoch} of "{self.name}".yaml'

    @property
    def vault(self) -> str:
        """Return the address of the vault."""
        return f"unix:{self.folder / 'shared' / 'vault.sock'}"

    def domain(self, epoch: int) -> Path:
        """Return the secret zone's keys of an epoch."""
        return self.folder / "secret" / f"epoch-{epoch}"

    def dataset(self, epoch: int) -> Path:
        """Return the dataset of an epoch, under a name with spaces and quotes."""
        return self.folder / "shared" / f'it\'s the "data" of {self.name}, epoch={epoch}'

    def evaluation_key(self, epoch: int) -> Path:
        """Return the trainer's copy of an epoch's evaluation key."""
        return self.folder / "trainer" / f"epoch-{epoch}" / "domain.eval"

    def secret(self, *arguments: object) -> str:
        """Run a command of the secret zone, with the passphrase; return what it printed."""
        return call(
            [*SITE, *map(str, arguments), "--passphrase-file", str(self.passphrase)], user=self.secret_zone
        ).stdout

    def zone(self, *arguments: object) -> str:
        """Run a command of the secret zone that needs no passphrase; return what it printed."""
        return call([*SITE, *map(str, arguments)], user=self.secret_zone).stdout

    def train(self, *arguments: object) -> str:
        """Run a command as the trainer; return what it printed."""
        return call([*SITE, *map(str, arguments)], user=self.trainer).stdout

    def hand_over(self, epoch: int) -> None:
        """Copy the trainer's keys of an epoch to it, as an administrator does."""
        target = self.evaluation_key(epoch).parent
        shutil.copytree(self.domain(epoch) / "trainer", target)
        self.trainer.own(target, *target.iterdir())

    def vault_command(self, epoch: int) -> list[str]:
        """Return the command of the vault."""
        return [
            *(*SITE, "vault", "--domain", str(self.domain(epoch)), "--passphrase-file", str(self.passphrase)),
            *("--dataset", str(self.dataset(epoch)), "--address", self.vault, "--policy", str(self.policy(epoch))),
            *("--audit-log", str(self.folder / "secret" / f"audit-{epoch}.log")),
        ]

    def join_command(self, epoch: int, superlink: str, ca: Path) -> list[str]:
        """Return the command of the SuperNode."""
        return [
            *(*SITE, "join", "--superlink", superlink, "--ca", str(ca), "--identity", str(self.identity)),
            *("--dataset", str(self.dataset(epoch)), "--evaluation-key", str(self.evaluation_key(epoch))),
            *("--vault", self.vault, "--policy", str(self.policy(epoch))),
        ]


def call(command: Sequence[str], status: int = 0, user: User = NOBODY_ELSE) -> subprocess.CompletedProcess[str]:
    """Run a command as a user, and check its exit status."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
        **user.options(),
    )
    assert done.returncode == status, done.stderr
    return done


@contextmanager
def serving(
    log: Path,
    command: Sequence[str],
    sign: str,
    number: int = signal.SIGTERM,
    status: int = 0,
    user: User = NOBODY_ELSE,
) -> Iterator["subprocess.Popen[str]"]:
    """Run a server from the sign in its output to the end of the block, where the signal must end it."""
    with log.open("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            **user.options(),
        )
        try:
            wait_for(log, process, sign)
            yield process
        finally:
            process.send_signal(number)
            ended = process.wait(timeout=STOP_SECONDS)
        assert ended == status, log.read_text()


def wait_for(log: Path, process: "subprocess.Popen[str]", sign: str) -> None:
    """Wait until a sign stands in a process's log."""
    deadline = time.monotonic() + START_SECONDS
    while sign not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Let all that is started write into a folder what it would call beyond this machine (`socket_guard`).

    It starts as from a plain shell: what keeps Flower quiet must be in what our commands start, not in the tests'
    environment.
    """
    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.MonkeyPatch.context() as patch:
        for name in QUIET_FLOWER:
            patch.delenv(name, raising=False)
        patch.setenv("PYTHONPATH", str(ROOT / "tests" / "socket_guard"))
        patch.setenv("FEDPP_SOCKET_GUARD", str(folder))
        yield


def called(folder: Path) -> tuple[list[str], list[str]]:
    """Return the command lines of all that was guarded, and what was called beyond this machine."""
    commands, calls = [], []
    for file in folder.iterdir():
        command, *others = file.read_text().splitlines()
        commands.append(command)
        calls += [f"{line} by {command}" for line in others]
    return commands, calls


def processes_of(folder: Path, program: str = "") -> dict[int, str]:
    """Return the command lines of all live processes that know this folder and run this program."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
        command, others = arguments.replace(b"\0", b" ").decode(), not zombie and process.name != str(os.getpid())
        if others and program in command and str(folder).encode() in arguments + environment:
            found[int(process.name)] = command
    return found


def ended(state: State, run: str) -> str:
    """Wait until SuperLink says that a run is over; return how."""
    deadline = time.monotonic() + CALL_SECONDS
    while not (status := flower(state, "list", CONNECTION, "--run-id", run)["runs"][0]["status"]).startswith(
        "finished"
    ):
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    return str(status)
