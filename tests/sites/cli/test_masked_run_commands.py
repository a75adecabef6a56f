"""Commands about masked runs: own figures, endorsements, burns."""

import json
import tempfile
from pathlib import Path

import pytest
from members import cheap
from run_hospitals import DOMAIN, TINY, Coordinator, contract_of, opened
from vaults import serving

from fedpp.keys import key_store
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.run_statements import SignedStatement
from sites.cli.site_cli import main
from sites.vault.masked_runs.own_report import OwnReport


def test_the_own_figures_of_a_run_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Each state and split with its figures, which are those of the counts that the vault wrote."""
    with opened(tmp_path) as cohort:
        run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
        run.finish()
        assert main(["run-report", str(cohort[0].folder)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"contract {run.digest[:16]} of East, North, South"
        assert [line.split(", loss")[0] for line in lines[1:]] == [
            "  state 0, validation: 2 sequences",
            "  state 1, validation: 2 sequences",
            "  state 1, test: 3 sequences",
        ]
        assert main(["run-report", str(cohort[0].folder), "--json"]) == 0
        (report,) = json.loads(capsys.readouterr().out)
        counts = OwnReport(cohort[0].folder, run.contract).rounds()["1 test"]
        assert report["rounds"][2]["loss"] == counts["loss-sum"] / 3
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
