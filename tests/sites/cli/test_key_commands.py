"""The key commands: found a domain, invite, accept, rotate and revoke, with real files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree, rmtree

import pytest
from conftest import ROOT
from hospital import error_of, site, site_process
from members import written

from fedpp.keys.site_identity import MembershipRequest

SHORTER_THAN_A_SHARE = 1000  # bytes, and longer than any key file


class Hospital:
    """Folder of one hospital, its passphrase and its commands; with `many`, a key epoch may have several successors."""

    many = False

    def __init__(self, folder: Path, passphrase: str) -> None:
        self.folder = folder
        folder.mkdir()
        self.file = folder / "passphrase"
        self.file.touch(0o600)
        self.file.write_text(f"{passphrase}\n")

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def run(self, *arguments: object) -> str:
        return site(*self._given(arguments)).stdout

    def refused(self, *arguments: object) -> str:
        return error_of(*self._given(arguments))

    def _given(self, arguments: tuple[object, ...]) -> tuple[object, ...]:
        again = ("--again",) if self.many and arguments[0] in {"invite", "accept", "rotate", "revoke"} else ()
        return *arguments, *again, "--passphrase-file", self.file

    def fingerprint(self, domain: str) -> str:
        fingerprint: str = json.loads(site("card", self / domain).stdout)["fingerprint"]
        return fingerprint

    def requesting(self, name: str) -> Path:
        """Make an identity of this name; return its membership request."""
        self.run("request", "--site", name, "--out", self / "identity")
        return self / "identity" / "site.request"


def invite(host: Hospital, request: Path, out: str) -> tuple[object, ...]:
    """Return the arguments of an invitation by a hospital's first epoch, with the phrase of the request."""
    to = ("--to", request, "--phrase", phrase(request))
    return "invite", "--domain", host / "domain", *to, "--out", host / out


def accept(invitation: Path, identity: Path, out: Path) -> tuple[object, ...]:
    return "accept", invitation, "--identity", identity, "--out", out


def phrase_of(stdout: str) -> str:
    """Return the verification phrase that a command printed as its last line."""
    return stdout.strip().splitlines()[-1].strip()


def phrase(request: Path) -> str:
    return MembershipRequest.load(request).verification_phrase


def card_phrase(domain: Path) -> str:
    return site("card", domain).stderr.split()[-1]


def invitation_for(name: str, domain: Path) -> Path:
    """Return the invitation that a rotation wrote for a site."""
    (path,) = (p for p in (domain / "invitations").iterdir() if f'\\"site\\":\\"{name}\\"' in p.read_text())
    return path


@pytest.fixture(scope="module")
def east(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """Return the founder of a domain."""
    hospital = Hospital(tmp_path_factory.mktemp("membership") / "east", "the founder's passphrase")
    hospital.run("keygen", "--out", hospital / "domain", "--site", "East")
    hospital.many = True  # each test begins with the first epoch
    return hospital


@pytest.fixture(scope="module")
def west(east: Hospital) -> Hospital:
    """Return a hospital that became a member, by phrases that were compared on the telephone."""
    hospital = Hospital(east.folder.parent / "west", "another passphrase")
    phrase_ = phrase_of(hospital.run("request", "--site", "West", "--out", hospital / "identity"))
    to = ("--to", hospital / "identity" / "site.request", "--phrase", phrase_)
    domain_phrase = phrase_of(east.run("invite", "--domain", east / "domain", *to, "--out", east / "west.invitation"))
    admitted = accept(east / "west.invitation", hospital / "identity", hospital / "domain")
    hospital.run(*admitted, "--phrase", domain_phrase)
    hospital.many = True
    return hospital


def test_a_member_has_the_founder_s_domain_and_its_own_identity(east: Hospital, west: Hospital):
    """Card and trainer's keys are the same; the passphrases are each one's own, and the CA key stayed."""
    assert west.fingerprint("domain") == east.fingerprint("domain")
    for name in ("domain.card", "trainer/domain.eval", "trainer/domain.rest"):
        assert (west / "domain" / name).read_bytes() == (east / "domain" / name).read_bytes()
    assert written(east / "domain") - written(west / "domain") >= {Path("secret/ca.key")}
    certified = json.loads((west / "domain" / "site.certificate").read_text())
    assert (certified["site"], certified["domain"]) == ("West", west.fingerprint("domain"))
    assert "wrong passphrase" in east.refused("rotate", "--domain", west / "domain", "--out", east / "x")


def test_phrases_that_differ_are_refused(east: Hospital, west: Hospital):
    """A wrong word or no phrase at all leaves no invitation and no membership."""
    invited = invite(east, west / "identity" / "site.request", "none.invitation")
    admitted = accept(east / "west.invitation", west / "identity", west / "none")
    for command, hospital in (((*invited[:5], *invited[7:]), east), (admitted, west)):
        assert "the phrases differ" in hospital.refused(*command, "--phrase", "lusab-babad-lusab-babad-lusab")
        assert "give --phrase" in hospital.refused(*command)
        few = hospital.refused(*command, "--phrase", "lusab babad")
        assert "5 words of five letters are needed" in few
        assert few.endswith("got 'lusab babad'")
        refused = hospital.refused(*command, "--phrase", "lusab-babad-lusab-babad-lusab")
        assert not {phrase(west / "identity" / "site.request"), card_phrase(east / "domain")} & {*refused.split()}
    assert not (east / "none.invitation").exists()
    assert not (west / "none").exists()


def test_an_invitation_to_the_present_key_epoch_is_refused(east: Hospital, west: Hospital):
    """A folder of that key epoch, or of a later one, has nothing to accept."""
    line = west.refused(*accept(east / "west.invitation", west / "domain", west / "again"))
    epochs = "is of key epoch 1 of this domain, the invitation of key epoch 1"
    assert line.endswith(f"{west / 'domain'} {epochs}: nothing to accept")
    assert not (west / "again").exists()


def test_an_identity_is_no_domain_yet(east: Hospital, west: Hospital):
    """An identity folder in place of a domain folder is named as that."""
    identity = west / "identity"
    said = f"{identity} is a site's identity and no domain: `fedpp-site accept` an invitation first"
    assert error_of("card", identity).endswith(said)
    to = ("--to", east / "domain" / "site.request", "--out", west / "x.invitation")
    assert west.refused("invite", "--domain", identity, *to).endswith(said)
    given = ("--domain", identity, "--out", west / "data")
    assert west.refused("ingest", ROOT / "tests", *given).endswith(said)


def test_what_is_suggested_can_be_pasted(east: Hospital):
    """Paths with blanks are quoted in suggested commands; a missing file is named once, without an error number."""
    out = east / "new epoch"
    printed = east.run("rotate", "--domain", east / "domain", "--out", out)
    assert f"--domain {east / 'domain'} --to '{out}'`" in printed
    open_file = east / "open file"
    open_file.write_text("the founder's passphrase\n")
    open_file.chmod(0o644)
    rotate = ("rotate", "--again", "--domain", east / "domain", "--out", east / "w")
    line = error_of(*rotate, "--passphrase-file", open_file)
    assert line.endswith(f"run `chmod 600 '{open_file}'`")
    for command, what in (
        (("card", east.folder), f"domain card {east.folder}/domain.card"),
        (accept(east / "none", east / "domain", east / "w"), f"invitation {east.folder}/none"),
        (
            ("invite", "--again", "--domain", east / "domain", "--to", east / "none", "--out", east / "w"),
            f"membership request {east / 'none'}",
        ),
        (("audit-log", "verify", open_file, "--certificate", east / "none"), f"certificate {east / 'none'}"),
    ):
        line = error_of(*command)
        assert f"cannot read the {what}: No such file or directory: " in line
        assert "Errno" not in line


def test_a_member_invites_nobody(east: Hospital, west: Hospital):
    """It has the secret, and the error says who invites."""
    line = west.refused(*invite(west, east / "domain" / "site.request", "x.invitation"))
    assert "only the site that founded this key epoch invites members" in line
    assert not (west / "x.invitation").exists()


@pytest.mark.parametrize("name", ["West", "East", "WEST"])
def test_two_sites_of_one_name_are_refused(east: Hospital, west: Hospital, name: str):
    """A certificate tells members apart by name, whatever its case."""
    other = Hospital(east.folder.parent / f"other {name}", "a third passphrase")
    line = east.refused(*invite(east, other.requesting(name), "y"))
    assert f"{name.title()} is a member already, with other keys" in line
    assert west.folder.exists()


def test_a_rotation_needs_no_phrase_and_revokes_a_member(east: Hospital, west: Hospital):
    """Members accept the successor that their key epoch names; a revoked one gets no invitation to it."""
    north = Hospital(east.folder.parent / "north", "the fourth passphrase")
    east.run(*invite(east, north.requesting("North"), "north.invitation"))

    east.run("rotate", "--domain", east / "domain", "--out", east / "epoch-2")
    assert len(list((east / "epoch-2" / "invitations").iterdir())) == 2
    west.run(*accept(invitation_for("West", east / "epoch-2"), west / "domain", west / "epoch-2"))
    assert west.fingerprint("epoch-2") == east.fingerprint("epoch-2") != east.fingerprint("domain")
    # North never accepted the first epoch: without its card it must compare phrases.
    admitted = accept(invitation_for("North", east / "epoch-2"), north / "identity", north / "epoch-2")
    assert "give --phrase" in north.refused(*admitted)

    assert "'Nord' is no member here: members are North, West" in east.refused(
        "revoke", "Nord", "--domain", east / "epoch-2", "--out", east / "epoch-3"
    )
    east.run("revoke", "North", "--domain", east / "epoch-2", "--out", east / "epoch-3")
    (path,) = (east / "epoch-3" / "invitations").iterdir()
    taken = accept(path, north / "identity", north / "epoch-3")
    assert "the invitation is for West" in north.refused(*taken, "--phrase", card_phrase(east / "epoch-3"))
    west.run(*accept(path, west / "epoch-2", west / "epoch-3"))
    assert json.loads((west / "epoch-3" / "domain.card").read_text())["key_epoch"] == 3


def test_members_remember_a_revocation_that_a_restored_founder_forgot(tmp_path: Path):
    """The founder's folder of before comes back from a backup: no member accepts its second successor by mistake."""
    east, west = Hospital(tmp_path / "east", "the founder's one"), Hospital(tmp_path / "west", "the member's one")
    east.run("keygen", "--out", east / "domain", "--site", "East")
    for name in ("West", "North"):
        request = (west if name == "West" else Hospital(tmp_path / "north", "the revoked one")).requesting(name)
        east.run(*invite(east, request, f"{name}.invitation"))
    first = accept(east / "West.invitation", west / "identity", west / "domain")
    west.run(*first, "--phrase", card_phrase(east / "domain"))
    copytree(east / "domain", east / "backup")
    east.run("revoke", "North", "--domain", east / "domain", "--out", east / "epoch-2")
    west.run(*accept(invitation_for("West", east / "epoch-2"), west / "domain", west / "epoch-2"))

    rmtree(east / "domain")
    copytree(east / "backup", east / "domain")
    east.run("rotate", "--domain", east / "domain", "--out", east / "forgetful")
    taken = accept(invitation_for("West", east / "forgetful"), west / "domain", west / "other")
    known, second = (east.fingerprint(folder)[:16] for folder in ("epoch-2", "forgetful"))
    expected = f"has a successor, {known}, and this invitation is to another, {second}: the founder's folder may"
    assert expected in west.refused(*taken)
    assert expected in west.refused(*taken, "--phrase", card_phrase(east / "forgetful"))
    assert not (west / "other").exists()
    west.run(*accept(invitation_for("West", east / "epoch-2"), west / "domain", west / "same"))
    west.run(*taken, "--again")


def test_the_founder_is_not_invited(east: Hospital):
    """It has the domain, and could not be revoked afterwards."""
    line = east.refused(*invite(east, east / "domain" / "site.request", "z"))
    assert "East is this site itself" in line
    assert not (east / "z").exists()


def test_a_key_epoch_is_written_whole_or_not_at_all(east: Hospital, west: Hospital):
    """A rotation whose disk takes the keys and not the invitations leaves nothing behind, and can be repeated."""
    before = written(east.folder)
    rotate = ["rotate", "--again", "--domain", east / "domain", "--passphrase-file", east.file, "--out", east / "n"]
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({SHORTER_THAN_A_SHARE},) * 2)"
    code = f"{limit}; import sys; from sites.cli.site_cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, rotate)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fedpp-site rotate: File too large")
    assert written(east.folder) == before
    assert not [path for path in east.folder.iterdir() if path.name.startswith(".") or path == east / "n"]
    east.run(*rotate[:4], "--out", east / "n")
    assert west.folder.exists()


def test_the_founder_cannot_revoke_itself(east: Hospital):
    """Revoking the site that holds the CA key is refused with the reason."""
    line = east.refused("revoke", "East", "--again", "--domain", east / "domain", "--out", east / "alone")
    assert "it cannot revoke itself" in line
    assert not (east / "alone").exists()


def test_a_card_that_was_exchanged_makes_no_successor(east: Hospital, west: Hospital):
    """A key epoch is accepted without a phrase if the sealed one named it: the file beside it is anybody's to write."""
    mallory = Hospital(east.folder.parent / "mallory", "the fifth passphrase")
    mallory.run("keygen", "--out", mallory / "domain", "--site", "Mallory")
    mallory.run(*invite(mallory, west / "domain" / "site.request", "first.invitation"))
    mallory.run("rotate", "--domain", mallory / "domain", "--out", mallory / "next")
    card = west / "domain" / "domain.card"
    own = card.read_bytes()
    card.write_bytes((mallory / "domain" / "domain.card").read_bytes())
    try:
        admitted = accept(invitation_for("West", mallory / "next"), west / "domain", west / "taken")
        assert "give --phrase" in west.refused(*admitted)
    finally:
        card.write_bytes(own)
    assert not (west / "taken").exists()


def test_folders_of_keys_have_modes_whatever_the_umask(tmp_path: Path):
    """A domain folder made under any umask lets others see what is public, and nothing else."""
    hospital = Hospital(tmp_path / "hospital", "the seventh passphrase")
    before = os.umask(0o002)
    try:
        hospital.run("keygen", "--out", hospital / "domain", "--site", "H")
        hospital.run("rotate", "--domain", hospital / "domain", "--out", hospital / "next")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (hospital / "next").iterdir() if path.is_dir()}
    assert modes == {"secret": 0o700, "trainer": 0o700, "invitations": 0o755}
    assert (hospital / "next").stat().st_mode & 0o777 == (hospital / "domain").stat().st_mode & 0o777 == 0o755


def test_nothing_is_overwritten(east: Hospital, west: Hospital):
    """Every command that writes keys refuses what is there, and leaves it as it was."""
    before = {path: path.read_bytes() for path in west.folder.rglob("*") if path.is_file()}
    admitted = accept(east / "west.invitation", west / "identity", west / "domain")
    assert "not overwritten" in west.refused(*admitted, "--phrase", card_phrase(east / "domain"))
    assert "not overwritten" in west.refused("request", "--site", "W", "--out", west / "identity")
    assert "not overwritten" in east.refused("keygen", "--out", east / "domain")
    assert "nothing is overwritten" in east.refused("rotate", "--domain", east / "domain", "--out", west / "domain")
    assert {path: path.read_bytes() for path in west.folder.rglob("*") if path.is_file()} == before


def test_a_card_shows_nothing_secret(east: Hospital):
    """What `card` prints is the card's file, and its phrase goes to people on stderr."""
    done = site("card", east / "domain")
    assert done.stdout == (east / "domain" / "domain.card").read_text()
    assert done.stderr.startswith("verification phrase ")


def test_a_passphrase_comes_through_a_descriptor(east: Hospital):
    """It is read from an open pipe; it is in no argument and no file."""
    reading, writing = os.pipe()
    os.write(writing, b"the founder's passphrase\n")
    os.close(writing)
    command = [sys.executable, "-m", "sites", "rotate", "--again", "--domain", str(east / "domain")]
    out = ["--out", str(east / "piped"), "--passphrase-fd", str(reading)]
    done = subprocess.run([*command, *out], cwd=ROOT, pass_fds=[reading], capture_output=True, text=True, check=False)
    os.close(reading)
    assert done.returncode == 0, done.stderr
    assert json.loads((east / "piped" / "domain.card").read_text())["key_epoch"] == 2


def test_an_epoch_has_one_successor(tmp_path: Path):
    """A second one would keep the member that was revoked with the first; a second rotation by mistake is refused."""
    hospital = Hospital(tmp_path / "hospital", "the eighth passphrase")
    hospital.run("keygen", "--out", hospital / "domain", "--site", "H")
    hospital.run("rotate", "--domain", hospital / "domain", "--out", hospital / "next")
    line = hospital.refused("rotate", "--domain", hospital / "domain", "--out", hospital / "other")
    assert f"has a successor, {hospital.fingerprint('next')[:16]}: take that folder" in line
    to = ("--to", hospital / "next" / "site.request", "--phrase", "x", "--out", hospital / "s")
    assert "has a successor" in hospital.refused("invite", "--domain", hospital / "domain", *to)
    assert not (hospital / "other").exists()
    hospital.run("rotate", "--domain", hospital / "next", "--out", hospital / "third")
    hospital.run("rotate", "--again", "--domain", hospital / "domain", "--out", hospital / "other")


def test_a_phrase_that_was_given_is_compared(east: Hospital, west: Hospital):
    """A key epoch that the old one named needs no phrase; a wrong one is refused all the same."""
    admitted = accept(invitation_for("West", east / "epoch-2"), west / "domain", west / "unheard")
    assert "the phrases differ" in west.refused(*admitted, "--phrase", "lusab-babad-lusab-babad-lusab")
    assert not (west / "unheard").exists()


@pytest.mark.parametrize(("scheme", "n"), [("more", 2), ("more-frame", 1)])
def test_keygen_makes_a_domain_of_a_scheme(tmp_path: Path, scheme: str, n: int):
    """The card names the scheme and its slots; `domain.eval` is of `more` alone; the secret costs 2^17 to guess at."""
    hospital = Hospital(tmp_path / "hospital", "the ninth passphrase")
    out = hospital / "domain"
    done = site_process("keygen", "--out", out, "--passphrase-file", hospital.file, "--scheme", scheme)
    card = json.loads(site("card", out).stdout)
    assert (card["scheme"], card["n"]) == (scheme, n)
    assert json.loads((out / "secret" / "domain.key").read_text())["scrypt"] == [17, 8, 1]
    has_key = scheme == "more"
    assert (out / "trainer" / "domain.eval").exists() == has_key
    assert ("domain.eval" in done.stdout) == has_key


def test_keygen_refuses_slots_that_a_scheme_has_not(tmp_path: Path):
    """The frame form has one slot: `-n 3` is refused, and nothing is written."""
    hospital = Hospital(tmp_path / "hospital", "the ninth passphrase")
    error = hospital.refused("keygen", "--out", hospital / "domain", "--scheme", "more-frame", "-n", 3)
    assert "has one slot, got n = 3" in error
    assert not (hospital / "domain").exists()
