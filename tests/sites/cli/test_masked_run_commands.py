"""Commands about masked runs: own figures, endorsements, burns."""

import json
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from members import cheap
from run_hospitals import DOMAIN, TINY, Coordinator, Hospital, contract_of, opened
from vaults import serving

from fedpp.errors import VaultError
from fedpp.keys import key_store
from fedpp.keys.key_store import Site
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.run_contract import LiftedLock, Parent
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.statement_chains import StatementChains, listed
from sites.cli.site_cli import main
from sites.vault.masked_runs import run_refusals
from sites.vault.masked_runs.own_report import OwnReport
from sites.vault.masked_runs.run_endorsements import Endorsement, lock_id


def test_the_own_figures_of_a_run_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Each state and split with its figures, which are those of the counts that the vault wrote."""
    with opened(tmp_path) as cohort:
        run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
        run.finish()
        assert main(["run-report", str(cohort[0].folder)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"contract {run.digest[:16]} of East, North, South"
        assert [line.split(", loss")[0] for line in lines[1:4]] == [
            "  state 0, validation: 2 sequences",
            "  state 1, validation: 2 sequences",
            "  state 1, test: 3 sequences",
        ]
        test = lines[4:]
        assert main(["run-report", str(cohort[0].folder), "--json"]) == 0
        (report,) = json.loads(capsys.readouterr().out)
        counts = OwnReport(cohort[0].folder, run.contract).rounds()["1 test"]
        tested = report["rounds"][2]
        assert tested["loss"] == counts["loss-sum"] / 3
        assert test[0].startswith(f'  positive is "{TINY.task.classes[1]}" (')
        assert tested["remarks"]
        assert [line.removeprefix("  note: ") for line in test if line.startswith("  note: ")] == tested["remarks"]
        (cohort[0].folder / "reports" / f"{run.digest}.json").write_text("{}")
        assert main(["run-report", str(cohort[0].folder)]) == 1
        assert "is damaged: remove it" in capsys.readouterr().err
        assert main(["run-report", str(tmp_path)]) == 1
        assert "there are no figures in" in capsys.readouterr().err


def test_a_model_is_endorsed_for_a_run_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The printed identifier is what a contract names; each hospital's vault then starts from that model."""
    rows = encrypted_initial_weights(TINY, 5, DOMAIN.computing_key())
    EncryptedModel(TINY, DOMAIN.card().fingerprint, TINY.task.classes, rows).save(tmp_path / "model.npz")
    (tmp_path / "passphrase").write_bytes(b"correct horse battery\n")
    (tmp_path / "passphrase").chmod(0o600)
    with opened(tmp_path) as cohort:
        printed = set()
        for of in cohort:
            key_store.join(tmp_path / of.name, of.site, cheap())
            secret = ["--domain", str(tmp_path / of.name), "--passphrase-file", str(tmp_path / "passphrase")]
            endorsing = ["endorse", str(tmp_path / "model.npz"), *secret, "--runs", str(of.folder), "--days", "1000"]
            assert main(endorsing) == 0
            printed.add(capsys.readouterr().out.strip())
        assert main(["endorse", *secret]) == 1
        assert "name a MODEL" in capsys.readouterr().err
        (model,) = printed
        run = Coordinator(cohort, contract_of(cohort, initial=model)).begin()
        assert run.stages()[0].state.rows["logits/kernel"].tobytes() == rows["logits/kernel"].tobytes()


def test_a_burn_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The statement of a vault that has released nothing, for the coordinator."""
    with opened(tmp_path) as cohort, tempfile.TemporaryDirectory(prefix="fedpp-") as folder:
        run = Coordinator(cohort, contract_of(cohort)).begin()
        of, address = cohort[0], f"unix:{folder}/vault.sock"
        run.train(1)
        (tmp_path / "site.yaml").write_text(of.policy().to_yaml())
        options = {"site": of.site, "policy": tmp_path / "site.yaml", "journal": of.journal}
        with serving(DOMAIN, of.dataset, address, **options):
            assert main(["burn", run.digest, "ab" * 32, "--vault", address]) == 0
            signed = SignedStatement.from_json(capsys.readouterr().out.strip())
            signed.require(of.site.certificate)
            assert (signed.statement.purpose, signed.statement.facts) == ("burn", {"aggregate": "ab" * 32})
            assert main(["burn", "cd" * 32, "ab" * 32, "--vault", address]) == 1
            assert "has not accepted that contract" in capsys.readouterr().err


@pytest.fixture
def secret(tmp_path: Path) -> list[str]:
    """Return the options of a passphrase, of which each domain folder is made here."""
    (tmp_path / "passphrase").write_bytes(b"correct horse battery\n")
    (tmp_path / "passphrase").chmod(0o600)
    return ["--passphrase-file", str(tmp_path / "passphrase")]


def keys_of(of: Hospital, tmp_path: Path, secret: list[str]) -> list[str]:
    """Return the options by which a command opens a hospital's keys and journal."""
    key_store.join(tmp_path / "keys" / of.name, of.site, cheap())
    return ["--domain", str(tmp_path / "keys" / of.name), *secret, "--runs", str(of.folder)]


def begun(cohort: list[Hospital]) -> Coordinator:
    """Begin a run that is good at the clock of the commands."""
    for each in cohort:
        each.now = datetime.now(UTC)
    return Coordinator(cohort, contract_of(cohort, expires=int(time.time()) + 10**6)).begin()


def test_a_burn_is_signed_where_no_vault_runs(tmp_path: Path, secret: list[str], capsys: pytest.CaptureFixture[str]):
    """By the keys and the journal: the file has the site's statements, and the vault that runs later keeps to it."""
    (tmp_path / "keys").mkdir()
    with opened(tmp_path) as cohort:
        run = begun(cohort)
        run.train(1)
        total, of, out = run.sum(), cohort[0], tmp_path / "burn.json"
        burning = ["burn", run.digest, "ab" * 32, *keys_of(of, tmp_path, secret), "--out", str(out)]
        assert main(burning) == 1
        assert "another vault has the folder of runs" in capsys.readouterr().err
        of.journal.close()
        assert main(burning) == 0
        signed = listed(out.read_text())
        chains = StatementChains(run.contract, {each.name: each.site.certificate for each in cohort})
        chains.take(run.signed())
        assert [each.statement.purpose for each in chains.take(signed)] == ["burn"]
        assert {each.statement.site for each in signed} == {of.name}
        of.open()
        with pytest.raises(VaultError, match=run_refusals.BURNED):
            of.vault.release(run.digest, 1, run.statements, total.hash)
        cohort[1].vault.release(run.digest, 1, run.statements, total.hash)
        cohort[1].journal.close()
        assert main(["burn", run.digest, "ab" * 32, *keys_of(cohort[1], tmp_path, secret)]) == 1
        assert run_refusals.RELEASED in capsys.readouterr().err
        cohort[1].open()


def test_nothing_is_signed_without_the_journal(tmp_path: Path, secret: list[str], capsys: pytest.CaptureFixture[str]):
    """A site that lost it may have released; no empty journal is made in its place."""
    (tmp_path / "keys").mkdir()
    with opened(tmp_path) as cohort:
        run = Coordinator(cohort, contract_of(cohort)).begin()
        options = keys_of(cohort[0], tmp_path, secret)
        options[-1] = str(tmp_path / "lost")
        for command in (["burn", run.digest, "ab" * 32], ["abandon", run.digest]):
            assert main([*command, *options]) == 1
            assert "without it nobody knows what this site has released" in capsys.readouterr().err
        assert not (tmp_path / "lost").exists()
        assert main(["burn", run.digest, "ab" * 32]) == 1
        assert "name the running --vault, or where none runs the --domain" in capsys.readouterr().err


def test_a_site_abandons_a_run_by_itself(tmp_path: Path, secret: list[str], capsys: pytest.CaptureFixture[str]):
    """Without its vault as well as with it; then the run does not start there."""
    (tmp_path / "keys").mkdir()
    with opened(tmp_path) as cohort:
        run = begun(cohort)
        of = cohort[0]
        of.journal.close()
        assert main(["abandon", run.digest, *keys_of(of, tmp_path, secret)]) == 0
        signed = SignedStatement.from_json(capsys.readouterr().out.strip())
        assert (signed.statement.purpose, signed.statement.site) == ("abandon", of.name)
        of.open()
        assert of.vault.abandon(run.digest) == signed.to_json()


def test_a_lock_is_lifted_by_who_accepts_the_risk(
    tmp_path: Path, secret: list[str], capsys: pytest.CaptureFixture[str]
):
    """The command says what it puts at risk, writes nothing without the confirmation, and the report shows it."""
    (tmp_path / "keys").mkdir()
    with opened(tmp_path, 5) as cohort:
        run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
        of = cohort[0]
        lifting = ["lift", run.digest, "1", "Xenia", *keys_of(of, tmp_path, secret)]
        assert main(lifting) == 1
        assert "can compute the update of Xenia from two sums" in capsys.readouterr().err
        assert not (of.folder / "lifted").exists()
        assert main([*lifting, "--accept-risk"]) == 0
        assert "can compute the update of Xenia from two sums" in capsys.readouterr().err
        require_lifted(of.folder, of.site, run.digest)
        assert main([*lifting[:-1], str(tmp_path / "none"), "--accept-risk"]) == 1
        assert "is no folder of runs" in capsys.readouterr().err
        contract = contract_of(cohort[:4]).changed(
            revision=1, parent=Parent(run.digest, 0, "ab" * 32), lifted=(LiftedLock("Xenia", 1),)
        )
        stage, counts = run.stages()[0], of.vault._of.counts.count("validation", of.logits(1, "validation"), 1)
        OwnReport(of.folder, contract).add(stage, counts)
        assert main(["run-report", str(of.folder)]) == 0
        assert "  round 1, lock lifted without a burn: Xenia, update at risk" in capsys.readouterr().out.splitlines()


def require_lifted(folder: Path, site: Site, contract: str) -> None:
    """Raise unless a site's staff lifted the lock of Xenia in round 1."""
    text = (folder / "lifted" / f"{lock_id(contract, 1, 'Xenia')}.json").read_text()
    Endorsement.from_json(text).require(site, datetime.now(UTC) + timedelta(days=29), "lifted")
