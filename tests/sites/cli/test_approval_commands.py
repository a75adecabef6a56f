"""Review of untrusted bundles, and approvals that keep the text of the policy file."""

import json
import os
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import pytest
from conftest import ROOT
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import FAB_INCLUDE_PATTERNS
from flwr.supercore.task_identity import TaskIdentity
from hospital import error_of, site, site_process
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.__main__ import main as coordinator
from fedpp.config.site_policy import SitePolicy, starting_text
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, FederationError
from sites.client.app import app
from sites.node import app_bundle as bundle_module
from sites.node.app_bundle import MAX_KEPT, Bundle
from sites.node.executor import require_flower
from sites.node.launch import Launch
from sites.node.launcher import reply_of
from sites.node.policy_file import set_listed

BLANK_LETTERS = "\u115f\u1160\u3164\uffa0"  # letters of Unicode: Python takes them in names
DATASET, A, B, C = "d" * 64, "a" * 64, "b" * 64, "0" * 64
MINE = {"pyproject.toml": b"[project]\n", "fedpp/errors.py": (ROOT / "fedpp" / "errors.py").read_bytes()}
# Ways of writing a list, each of which says of the comments in it that they must stay.
LISTS = (
    "[]",
    "",
    "~",
    "[ ]  # none of ours",
    "  # to come",
    f'["{A}"]',
    f"[{A}, '{B}']  # of ours",
    f"[\n  {A},  # of ours\n  {B},\n]",
    f"\n  - {A}  # of ours\n  # of ours, too\n  - '{B}'",
    f"\n- {A}\n- {B}\n",
    f"\n  - {B}",
    f"\n  - {A}\n  - {B}  # of theirs",
)


def archive(files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> bytes:
    """Return a zip of these files, whose entries were changed before they were written."""
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as zipped:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            change(info)
            zipped.writestr(info, data)
    return content.getvalue()


def linked(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def deflated(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_DEFLATED


def packed(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_LZMA


def twice(content: bytes) -> bytes:
    """Return the archive with its second entry's name made the first's, in both places where it stands."""
    return content.replace(b"b.py", b"a.py")


def encrypted(content: bytes) -> bytes:
    """Return the archive with the flag of encryption set in its directory."""
    at = content.index(b"PK\1\2") + 8
    return content[:at] + struct.pack("<H", 1) + content[at + 2 :]


def damaged(content: bytes) -> bytes:
    return content.replace(b"print(1)", b"print(2)")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (archive({"../evil.py": b""}), "holds a file outside of its folder, '../evil.py'"),
        (archive({"a/../../evil.py": b""}), "holds a file outside of its folder"),
        (archive({"/etc/evil.py": b""}), "holds a file outside of its folder, '/etc/evil.py'"),
        (archive({"a\\b.py": b""}), "holds a file with the name"),
        (archive({"a//b.py": b""}), "holds a file with the name 'a//b.py'"),
        (archive({"a/": b""}), "holds a file with the name 'a/'"),
        (archive({".": b""}), "holds a file with the name '.'"),
        (archive({"a\x1b[2J.py": b""}), "holds a file with the name 'a\\x1b[2J.py'"),
        (archive({"a" * 201: b""}), "holds a file with the name"),
        *(
            (archive({name: b""}), f"holds {name!r}, a kind of file that Flower puts into none")
            for name in (
                *("a/__pycache__/b.cpython-311.pyc", "a/__pycache__/b.py", "b.pyc", "b.so", "b.pth", "b.pyw", "b.PY"),
                *("b", "b.txt", ".py", "a/LICENSE", "a/.info/CONTENT", "x.dist-info/METADATA"),
            )
        ),
        *(
            (archive({name: b""}), f"holds {name!r}, which would stand in for Python's own {module!r}")
            for name, module in (
                *(("json/a/b.py", "json"), ("json.py", "json"), ("_socket.py", "_socket")),
                *(("sitecustomize.py", "sitecustomize"), ("usercustomize/a.py", "usercustomize")),
            )
        ),
        *(
            (archive({"a.py": source}), f"holds 'a.py', which {problem}")
            for source, problem in (
                (
                    b"# coding: unicode_escape\n# harmless \\u000aprint(1)\n",
                    "is encoded in unicode_escape, not in UTF-8",
                ),
                (b"# coding: utf-7\n", "is encoded in utf-7, not in UTF-8"),
                (b"# coding: no-such\n", "declares an unknown encoding"),
                (b"# coding: latin-1\n", "is encoded in iso-8859-1, not in UTF-8"),
                (b"# harmless\rprint(1)\n", "holds the character U+000D"),
                (b"# harmless\x0cprint(1)\n", "holds the character U+000C"),
                ("x = '\u202e'\n".encode(), "holds the character U+202E"),
                ("# harmless\u2028print(1)\n".encode(), "holds the character U+2028"),
                *(
                    (f"x{letter} = 1\n".encode(), f"holds the character U+{ord(letter):04X}")
                    for letter in BLANK_LETTERS
                ),
                (b"x = '\xff'\n", "declares an unknown encoding"),
            )
        ),
        (archive({"pyproject.toml": b"\xff"}), "holds 'pyproject.toml', which is not UTF-8"),
        (archive({"link.py": b"/etc/passwd"}, linked), "holds 'link.py', which is a link or another special file"),
        (archive({"a.py": b"x" * 100}, packed), "holds 'a.py' encrypted or in an unusual compression"),
        (encrypted(archive({"a.py": b""})), "holds 'a.py' encrypted"),
        (twice(archive({"a.py": b"1", "b.py": b"2"})), "holds 'a.py' twice"),
        (archive({"a.py": b"", "a.py/b.py": b""}), "holds 'a.py' as a file and as a folder"),
        (archive({f"{number}.py": b"" for number in range(2001)}), "holds 2001 files, at most 2000 are read"),
        (damaged(archive({"a.py": b"print(1)"})), "is no whole zip archive"),
        (archive({"a.py": b"print(1)"})[:-30], "is no whole zip archive"),
        (b"", "is no whole zip archive"),
    ],
)
def test_an_unsafe_bundle_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """An archive that would write elsewhere, or that hides what it holds, is refused before a byte is written."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(FederationError) as raised:
        Bundle(content).unpack(tmp_path / "empty")
    assert f"bundle {sha256(content).hexdigest()} {reason}" in str(raised.value)
    assert str(raised.value).endswith(": do not approve it")
    assert str(raised.value).isprintable()
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_the_bundle_kept_for_review_is_the_one_received(tmp_path: Path) -> None:
    """A file, or a link, under a bundle's name is replaced, and is not read in its place."""
    bundle, other = Bundle(archive({"a.py": b"print(1)"})), Bundle(archive({"a.py": b"print(2)"}))
    path = tmp_path / f"{bundle.hash}.fab"
    (tmp_path / "elsewhere").write_bytes(b"untouched")
    for plant in (lambda: path.write_bytes(other.content), lambda: path.symlink_to(tmp_path / "elsewhere")):
        path.unlink(missing_ok=True)
        plant()
        with pytest.raises(FederationError, match="is another bundle than its name says"):
            Bundle.load(path)
        assert Bundle.load(bundle.keep(tmp_path)) == bundle
        assert not path.is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"untouched"


def test_a_pipe_is_no_bundle_and_no_policy(tmp_path: Path) -> None:
    """No command waits for a writer of the pipe."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FederationError, match="is no file"):
        Bundle.load(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is no file"):
        SitePolicy.load(tmp_path / "pipe")


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    """A small archive that unpacks to more than the bound is refused, without unpacking all of it."""
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a.py", bytes(2 * bundle_module.MAX_UNPACKED))
    assert len(content.getvalue()) < 2**20
    with pytest.raises(FederationError, match=f"unpacks to more than {bundle_module.MAX_UNPACKED} bytes"):
        Bundle(content.getvalue()).unpack(tmp_path)
    assert list(tmp_path.iterdir()) == []


@example(b"", 34, b"\xff" * 8)  # in the midst of what is deflated
@given(st.binary(max_size=300), st.integers(0, 300), st.binary(min_size=1, max_size=8))
def test_any_bytes_are_files_or_refused(noise: bytes, place: int, patch: bytes) -> None:
    """Any content, damaged or not, is read or ends in `FederationError`."""
    good = archive({"a.py": b"print(1)" * 20, "b/c.py": b""}, deflated)
    place %= len(good)
    for content in (noise, good[:place] + patch + good[place + len(patch) :]):
        try:
            files = Bundle(content).files()
        except FederationError as error:
            assert "\n" not in str(error)
        else:
            assert all(not name.startswith(("/", "..")) for name in files)


def test_only_the_newest_refused_bundles_are_kept(tmp_path: Path) -> None:
    """A coordinator that sends bundle after bundle does not fill the disk; the newest is kept."""
    for number in range(MAX_KEPT + 3):
        bundle = Bundle(archive({"a.py": str(number).encode()}))
        assert bundle.keep(tmp_path / "kept").read_bytes() == bundle.content
        assert bundle.keep(tmp_path / "kept").stat().st_mode & 0o777 == 0o600
    assert len(list((tmp_path / "kept").iterdir())) == MAX_KEPT


def test_review_reports_what_differs(tmp_path: Path) -> None:
    """A review names each file, its hash, and whether it is the installed fedpp's; it unpacks what it names."""
    content = archive(
        MINE | {"sites/client/app.py": b"import os\n", "fedpp/extra.py": b"", "coordinator/server/app.py": b""}
    )
    kept = Bundle(content).keep(tmp_path / "identity" / "refused")
    refused = ("review", Bundle(content).hash, "--identity", tmp_path / "identity", "--out", tmp_path / "out")
    review = json.loads(site(*refused, "--json").stdout)
    assert review["bundle"] == sha256(content).hexdigest()
    assert {file["file"]: file["installed"] for file in review["files"]} == {
        "coordinator/server/app.py": "not installed",
        "fedpp/errors.py": "as installed",
        "fedpp/extra.py": "not installed",
        "pyproject.toml": "not installed",
        "sites/client/app.py": "DIFFERS from the installed",
    }
    for file in review["files"]:
        unpacked = (tmp_path / "out" / file["file"]).read_bytes()
        assert (file["sha256"], file["bytes"]) == (sha256(unpacked).hexdigest(), len(unpacked))

    shown = site("review", kept, "--out", tmp_path / "again").stdout.splitlines()
    assert shown[0] == f"bundle {review['bundle']}"
    assert shown[-1] == (
        f"5 files in {tmp_path / 'again'}: 1 as installed, 1 that DIFFER from the installed fedpp's, "
        "3 that it does not have, 2 of these code: read all but the first"
    )
    assert (review["shadows"], [line for line in shown if "WARNING" in line]) == ({}, [])

    existing = error_of("review", kept, "--out", tmp_path / "out")
    assert existing == f"fedpp-site review: {tmp_path / 'out'} is there already: choose another --out"
    assert "add --identity" in error_of("review", A, "--out", tmp_path / "new")
    missing = error_of("review", "missing.fab", "--out", tmp_path / "new")
    assert missing.startswith("fedpp-site review: No such file or directory (missing.fab)")
    assert not (tmp_path / "new").exists()


def test_modules_that_shadow_installed_ones_are_reported(tmp_path: Path) -> None:
    """Review and approval name each module of a bundle that shadows an installed one, and no data file."""
    files = dict.fromkeys(("numpy.py", "google/protobuf/message.py", "flwr/app/x.py", "mine/x.py", "yaml/x.json"), b"")
    (tmp_path / "a.fab").write_bytes(archive(MINE | files))
    command = ("review", tmp_path / "a.fab", "--out")
    shadows = json.loads(site(*command, tmp_path / "out", "--json").stdout)["shadows"]
    assert shadows.keys() == {"numpy", "google", "flwr"}
    assert (shadows["numpy"], shadows["flwr"]) == (["numpy"], ["flwr"])
    assert "protobuf" in shadows["google"]
    warnings = [line for line in site(*command, tmp_path / "b").stdout.splitlines() if "WARNING" in line]
    assert len(warnings) == 3
    assert warnings[-1] == (
        "WARNING: the bundle's numpy stands in for that of the installed numpy, wherever its code imports it: "
        "approve it only if you know why"
    )
    (tmp_path / "site.yaml").write_text(starting_text(DATASET))
    approved = site("approve", tmp_path / "a.fab", "--policy", tmp_path / "site.yaml")
    assert approved.stderr.splitlines() == warnings


def test_every_kind_of_file_of_flower_is_accepted() -> None:
    """Every kind of file that Flower's patterns include passes, and so do its own manifest and files at the top."""
    names = [pattern.removeprefix("**/").removeprefix("/").replace("*", "a") for pattern in FAB_INCLUDE_PATTERNS]
    assert set(Bundle(archive(dict.fromkeys([*names, ".info/CONTENT"], b""))).files()) == {*names, ".info/CONTENT"}


def test_a_policy_is_written_once_and_approves_nothing(tmp_path: Path, dataset: EncryptedDataset) -> None:
    """`policy` fills in the dataset, never overwrites, and leaves a file that others may read."""
    path = tmp_path / "site.yaml"
    command = ("policy", "--dataset", dataset.path, "--out", path)
    few = (
        "note: too few patients in train (6), validation (2), test (3): a run needs 10 in each split that is not empty"
    )
    assert few in site(*command).stderr
    assert SitePolicy.load(path) == SitePolicy((), (dataset.manifest.fingerprint,))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    written = path.read_text()
    assert error_of(*command) == f"fedpp-site policy: {path} is there already: choose another --out, or edit it"
    assert path.read_text() == written


def test_both_sides_compare_one_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`coordinator bundle` prints the hash of the file it writes, and of Flower's build of the same files elsewhere.

    Neither the folder nor the files' dates and modes decide, nor a compression library.
    """
    file, policy = tmp_path / "fedpp.fab", tmp_path / "site.yaml"
    assert coordinator(["bundle", "--out", str(file)]) == 0
    printed = capsys.readouterr().out.strip()
    assert Bundle.load(file).hash == printed
    with zipfile.ZipFile(file) as zipped:
        assert {entry.compress_type for entry in zipped.infolist()} == {zipfile.ZIP_STORED}
        assert {entry.date_time for entry in zipped.infolist()} == {(2024, 10, 1, 0, 0, 0)}
    elsewhere = tmp_path / "elsewhere"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, reversed(names)):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_bytes((ROOT / name).read_bytes())
        os.utime(elsewhere / name, (10**9, 10**9))
        (elsewhere / name).chmod(0o755)
    assert sha256(build_fab_from_disk(elsewhere)).hexdigest() == printed

    policy.write_text(starting_text(DATASET))
    approved = site_process("approve", file, "--policy", policy).stdout
    assert approved.startswith(f"bundle {printed} may run")
    assert SitePolicy.load(policy).bundles == (printed,)
    assert (
        site("approve", printed, "--policy", policy).stdout
        == f"nothing to do: bundle {printed} is already in {policy}\n"
    )
    site("approve", printed, "--policy", policy, "--remove")
    assert SitePolicy.load(policy).bundles == ()
    (tmp_path / "no.fab").write_bytes(b"no zip")
    assert "do not approve it" in error_of("approve", tmp_path / "no.fab", "--policy", policy)


@example(written=LISTS[-1], steps=[(C, True)])
@example(written=LISTS[7], steps=[(A, False), (B, False)])
@given(written=st.sampled_from(LISTS), steps=st.lists(st.tuples(st.sampled_from((A, B, C)), st.booleans()), max_size=6))
def test_approval_changes_the_list_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, written: str, steps: list[tuple[str, bool]]
) -> None:
    """Approvals and withdrawals keep the rest of the text, in every style of the list."""
    path = tmp_path_factory.mktemp("policy") / "site.yaml"
    before, after = (
        "# Ours.\nuntil: 2030-01-01 # the end\nbundles:",
        f"\n# Which data.\ndatasets: ['{DATASET}']  # all\n",
    )
    path.write_text(f"{before} {written}{after}")
    path.chmod(0o640)
    expected = list(SitePolicy.load(path).bundles)
    for bundle, approved in steps:
        assert set_listed(path, "bundles", bundle, approved=approved) == ((bundle in expected) != approved)
        if approved and bundle not in expected:
            expected.append(bundle)
        elif not approved and bundle in expected:
            expected.remove(bundle)
        assert SitePolicy.load(path).bundles == tuple(expected)
    text = path.read_text()
    assert text.startswith(before)
    assert text.endswith(after)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    if all(approved for _, approved in steps):
        assert text.count("#") == written.count("#") + 4
        if written.startswith("\n"):  # one a line
            assert set(written.splitlines()[1:]) <= set(text.splitlines())


def test_what_cannot_be_edited_is_left_alone(tmp_path: Path) -> None:
    """A list in another style is reported, and the file stays as it was."""
    path = tmp_path / "site.yaml"
    path.write_text(f"{{bundles: [], datasets: ['{DATASET}']}}")
    with pytest.raises(ConfigError, match=f"cannot edit the list of bundles in {path}: write one hash a line"):
        set_listed(path, "bundles", A, approved=True)
    assert path.read_text() == f"{{bundles: [], datasets: ['{DATASET}']}}"
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".site.yaml.lock", path]


@given(written=st.sampled_from(LISTS), bundle=st.sampled_from((A, C)), newline=st.sampled_from(("\n", "\r\n")))
def test_line_ends_stay(tmp_path_factory: pytest.TempPathFactory, written: str, bundle: str, newline: str) -> None:
    """A file of one kind of line ends gets no line end of the other kind, in any style of the list."""
    path = tmp_path_factory.mktemp("policy") / "site.yaml"
    text = f"# Ours.\nbundles: {written}\ndatasets: ['{DATASET}']\n"
    path.write_bytes(text.replace("\n", newline).encode())
    approved = bundle not in SitePolicy.load(path).bundles
    assert set_listed(path, "bundles", bundle, approved=approved)
    after = path.read_bytes().decode()
    assert after.count("\r") == (after.count("\n") if newline == "\r\n" else 0)
    assert set_listed(path, "bundles", bundle, approved=not approved)
    assert path.read_bytes().decode().count("\r") in {0, path.read_bytes().count(b"\r\n")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_stays(tmp_path: Path) -> None:
    """After root's approval the policy and its lock belong to their owner, who can approve the next bundle."""
    path = tmp_path / "site.yaml"
    path.write_text(starting_text(DATASET))
    os.chown(path, 20001, 20100)
    path.chmod(0o640)
    set_listed(path, "bundles", A, approved=True)
    after = path.stat()
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (20001, 20100, 0o640)
    lock = (tmp_path / ".site.yaml.lock").stat()
    assert (lock.st_uid, stat.S_IMODE(lock.st_mode)) == (20001, 0o600)


def test_two_approvals_at_once_are_both_kept(tmp_path: Path) -> None:
    """No approval is lost when several processes approve bundles at the same time."""
    path = tmp_path / "site.yaml"
    path.write_text(starting_text(DATASET))
    code = (
        "import sys\nfrom pathlib import Path\nfrom sites.node.policy_file import set_listed\nsys.stdin.readline()\n"
        "for number in range(15):\n"
        "    set_listed(Path(sys.argv[1]), 'bundles', f'{int(sys.argv[2]) * 100 + number:064x}', approved=True)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(n)], cwd=ROOT, stdin=subprocess.PIPE)
        for n in range(2)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in started:
        process.communicate(timeout=60)
        assert process.returncode == 0
    expected = {f"{n * 100 + number:064x}" for n in range(2) for number in range(15)}
    assert set(SitePolicy.load(path).bundles) == expected


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("train", "", f"this site has not approved bundle {Bundle(b'').hash}: ask its staff to review it"),
        ("train", "requests: [describe]", "this site's policy does not allow to answer 'train': its staff decides"),
        ("query.all", "", "this site's policy does not allow to answer 'query.all': its staff decides"),
        ("train", "until: 2026-01-31", "this site's policy ended with 2026-01-31: ask its staff to prolong it"),
        ("train", "untill: 2026-01-31", "this site's policy cannot be read: its own log says why"),
    ],
)
def test_the_launcher_checks_the_policy_and_sends_no_path(tmp_path: Path, kind: str, changes: str, reason: str) -> None:
    """A request that the policy does not allow gets an error reply of one line, before the bundle is opened."""
    options = launch(tmp_path)
    options.policy.write_text(f"bundles: []\ndatasets: ['{DATASET}']\n{changes}")
    message = Message(content=RecordDict(), metadata=Metadata(1, "request", 0, 1, "", "", 0.0, 60.0, kind))
    reply = reply_of(message, Context(1, 1, {}, RecordDict(), {}), Bundle(b""), options)
    assert reply.has_error()
    assert reply.error.reason == reason


def launch(folder: Path) -> Launch:
    """Return the arguments of a launcher that has its files in this folder, and takes no task."""
    return Launch("127.0.0.1:1", os.getpid(), folder / "site.yaml", folder / "refused", folder)


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        (None, "there is no policy {policy}: nothing is allowed; `fedpp-site policy` writes one to begin with"),
        ("", "{policy}: the policy is empty: nothing is allowed; `fedpp-site policy` writes one to begin with"),
    ],
)
def test_without_a_policy_every_request_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None, logged: str
) -> None:
    """Launcher and ClientApp refuse a missing or an empty policy; the log says what to do, the reply holds no path."""
    policy = tmp_path / "site.yaml"
    if text is not None:
        policy.write_text(text)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # as in Flower's processes
    metadata = Metadata(1, "request", 0, 1, "", "", 0.0, 60.0, "query.describe")
    message = Message(content=RecordDict(), metadata=metadata)
    options = launch(tmp_path)
    node = {"dataset": "data", "evaluation-key": "key", "vault": "unix:/none", "policy": str(policy), "work": "work"}
    launched = reply_of(message, Context(1, 1, {}, RecordDict(), {}), Bundle(b""), options)
    assert launched.error.reason == "this site's policy cannot be read: its own log says why"
    reply = app(message, Context(1, 1, node, RecordDict(), {}))
    assert dict(reply.content["refusal"]) == {"reason": "its settings do not fit: its own log says which"}
    lines = [record.getMessage() for record in caplog.records if record.name == "fedpp.site"]
    assert lines == [f"{who} refused: {logged.format(policy=policy)}" for who in ("run 1", "describe")]


def test_another_flower_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a Flower version lacks a function that the launcher uses, the site does not join, and says why."""
    require_flower()
    changed = "import flwr.supernode.runtime.run_clientapp as module\ndel module.push_message\n"
    (tmp_path / "sitecustomize.py").write_text(changed)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError) as raised:
        require_flower()
    assert f"cannot be enforced with Flower {version('flwr')}" in str(raised.value)
    assert "cannot import name 'push_message'" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_dataset_is_approved_by_its_folder(tmp_path: Path, dataset: EncryptedDataset) -> None:
    """A re-encrypted dataset is added beside the old one, which is then withdrawn; the last one stays listed."""
    policy, fingerprint = tmp_path / "site.yaml", dataset.manifest.fingerprint
    policy.write_text(starting_text(DATASET))
    command = ("approve", dataset.path, "--policy", policy)
    assert site(*command).stdout == f"dataset {fingerprint} may be used: {policy}\n"
    assert SitePolicy.load(policy).datasets == (DATASET, fingerprint)
    assert site(*command).stdout == f"nothing to do: dataset {fingerprint} is already in {policy}\n"
    assert site(*command, "--remove").stdout == f"dataset {fingerprint} may not be used any more: {policy}\n"
    assert policy.read_text() == starting_text(DATASET)
    policy.write_text(starting_text(fingerprint))
    assert "lists no other of its datasets, and needs one" in error_of(*command, "--remove")
    assert policy.read_text() == starting_text(fingerprint)
    shown = json.loads(site("inspect", dataset.path, "--json").stdout)
    assert shown["fingerprint"] == fingerprint
    assert "cannot read an encrypted dataset" in error_of("approve", tmp_path, "--policy", policy)
