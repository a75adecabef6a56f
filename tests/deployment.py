"""Hospitals and a coordinator as real processes: each hospital's secret zone and trainer are separate users.

This requires root, and a checkout and interpreter that other users can reach; as root, an unreachable one fails the
tests. Without root all processes run as the current user. Each process has the deployment's folder in its arguments or
environment, so that a process that should have ended is found.
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
from fedpp.config.run_config import SiteConfig
from fedpp.processes import QUIET_FLOWER

SITE = [sys.executable, "-m", "sites"]
COORDINATOR = [sys.executable, "-m", "coordinator"]
PASSPHRASE = "correct horse battery staple"
MATPLOTLIB = f"{tempfile.gettempdir()}/fedpp-test-matplotlib"  # its cache of fonts takes seconds to make
START_SECONDS, STOP_SECONDS, CALL_SECONDS = 60, 30, 300


@dataclass(frozen=True)
class User:
    """A user of the operating system; None means the user who runs the tests."""

    uid: int | None
    gid: int | None

    def options(self) -> dict[str, object]:
        """Return the options with which `subprocess` starts a program as this user, without other groups."""
        if self.uid is None:
            return {}
        home = {**os.environ, "HOME": "/nonexistent", "MPLCONFIGDIR": f"{MATPLOTLIB}-{self.uid}"}
        return {"user": self.uid, "group": self.gid, "extra_groups": [], "env": home}

    def own(self, *paths: Path, mode: int | None = None) -> None:
        """Give paths to this user, with a mode if one is given."""
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
        """Try to read it, as this user."""
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
        """Create the folders, and the passphrase."""
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
        """Return the site's policy file, whose name has spaces and quotes."""
        return self.folder / "shared" / f'policy {epoch} of "{self.name}".yaml'

    @property
    def vault(self) -> str:
        """Return the address of the vault."""
        return f"unix:{self.folder / 'shared' / 'vault.sock'}"

    def domain(self, epoch: int) -> Path:
        """Return the secret zone's keys of a key epoch."""
        return self.folder / "secret" / f"epoch-{epoch}"

    def dataset(self, epoch: int) -> Path:
        """Return the dataset of a key epoch, whose name has spaces and quotes."""
        return self.folder / "shared" / f'it\'s the "data" of {self.name}, epoch={epoch}'

    def evaluation_key(self, epoch: int) -> Path:
        """Return the trainer's copy of a key epoch's evaluation key."""
        return self.folder / "trainer" / f"epoch-{epoch}" / "domain.eval"

    def secret(self, *arguments: object) -> str:
        """Run a command of the secret zone, with the passphrase; return its output."""
        return call(
            [*SITE, *map(str, arguments), "--passphrase-file", str(self.passphrase)], user=self.secret_zone
        ).stdout

    def zone(self, *arguments: object) -> str:
        """Run a command of the secret zone without the passphrase; return its output."""
        return call([*SITE, *map(str, arguments)], user=self.secret_zone).stdout

    def train(self, *arguments: object) -> str:
        """Run a command as the trainer; return its output."""
        return call([*SITE, *map(str, arguments)], user=self.trainer).stdout

    def hand_over(self, epoch: int) -> None:
        """Copy the keys of a key epoch to the trainer, as an administrator does."""
        target = self.evaluation_key(epoch).parent
        shutil.copytree(self.domain(epoch) / "trainer", target)
        self.trainer.own(target, *target.iterdir())

    def vault_command(self, epoch: int) -> list[str]:
        """Return the command of the vault, to which the trainer may connect, and this user for simulations."""
        users = [str(uid) for uid in (self.trainer.uid, os.getuid()) if uid is not None]
        return [
            *(*SITE, "vault", "--domain", str(self.domain(epoch)), "--passphrase-file", str(self.passphrase)),
            *("--dataset", str(self.dataset(epoch)), "--address", self.vault, "--policy", str(self.policy(epoch))),
            *("--audit-log", str(self.folder / "secret" / f"audit-{epoch}.log")),
            *(part for user in users for part in ("--allow-user", user)),
        ]

    def join_command(self, epoch: int, superlink: str, ca: Path) -> list[str]:
        """Return the command of the SuperNode."""
        own = self.dataset(epoch), self.evaluation_key(epoch), self.vault, self.policy(epoch), self.folder
        return join_command(superlink, ca, self.identity, SiteConfig(*own))


def join_command(superlink: str, ca: Path, identity: Path, site: SiteConfig) -> list[str]:
    """Return the command of a site's SuperNode."""
    return [
        *(*SITE, "join", "--superlink", superlink, "--ca", str(ca)),
        *("--identity", str(identity), "--dataset", str(site.dataset)),
        *("--evaluation-key", str(site.evaluation_key), "--vault", site.vault, "--policy", str(site.policy)),
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
    """Run a server: wait for the sign in its output, and end it with the signal after the block."""
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
    """Wait until the sign is in a process's log."""
    deadline = time.monotonic() + START_SECONDS
    while sign not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Make all processes write their calls beyond this machine into a folder (`socket_guard`).

    They start as from a plain shell: the settings that keep Flower quiet must come from our commands, not from the
    tests' environment.
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
    """Return the command lines of all guarded processes, and their calls beyond this machine."""
    commands, calls = [], []
    for file in folder.iterdir():
        command, *others = file.read_text().splitlines()
        commands.append(command)
        calls += [f"{line} by {command}" for line in others]
    return commands, calls


def processes_of(folder: Path, program: str = "") -> dict[int, str]:
    """Return the command lines of all live processes of this folder that run this program."""
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
    """Wait until SuperLink reports the end of a run; return its status."""
    deadline = time.monotonic() + CALL_SECONDS
    while not (status := flower(state, "list", CONNECTION, "--run-id", run)["runs"][0]["status"]).startswith(
        "finished"
    ):
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    return str(status)
