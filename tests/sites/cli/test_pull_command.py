"""The model of a finished run: unsealed by a member alone, as ciphertext or for plain images."""

import stat
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import TINY, write_dataset
from hospital import error_of, keys, site
from members import EAST, cheap, founded, membership

from fedpp.aggregation.global_state import GlobalState, initial
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.keys import encryption, key_store
from fedpp.keys.frame_cipher import FrameCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.model_file import EncryptedModel

pytestmark = pytest.mark.usefixtures("eager")

PASSPHRASE = "correct horse battery"
PATCHES = TINY.changed(patch=2)


def state_of(domain: KeyDomain, network: ModelSpec) -> GlobalState:
    rows = encrypted_initial_weights(network, 0, domain.computing_key())
    facts = {"domain": domain.card().fingerprint, "dtype": "float64", "classes": ("no", "yes")}
    return initial(rows, network=network, rule=ServerOptimizerConfig(), salt="5a" * 32, **facts)


@pytest.fixture
def member(tmp_path: Path) -> tuple[KeyDomain, Path]:
    """Return a domain, and the folder of a member's keys and of a run's model."""
    return prepared(tmp_path, founded(), TINY)


def prepared(folder: Path, domain: KeyDomain, network: ModelSpec) -> tuple[KeyDomain, Path]:
    key_store.join(folder / "domain", membership(EAST, domain), cheap())
    (folder / "passphrase").write_text(f"{PASSPHRASE}\n")
    (folder / "passphrase").chmod(0o600)
    state = state_of(domain, network).to_bytes()
    (folder / "final.state").write_bytes(state)
    (folder / "identity" / "models").mkdir(parents=True)
    (folder / "identity" / "models" / "7.state").write_bytes(state)
    return domain, folder


def pull(folder: Path, run: object, out: str, *more: object) -> tuple[object, ...]:
    return "pull", run, *keys(folder), "--out", folder / out, *more


def test_a_run_without_masking_leaves_a_state_in_clear(member: tuple[KeyDomain, Path]):
    """It is read as it is, even where the bytes of its weights spell what a sealed one begins with."""
    domain, folder = member
    state = state_of(domain, TINY)
    first = TINY.weights()[0].name
    spelled = np.frombuffer(b'"format":"fedpp-sealed-1"'.ljust(32), "<f8")
    rows = {**state.rows, first: np.resize(spelled, state.rows[first].shape)}
    (folder / "clear.state").write_bytes(replace(state, rows=rows).to_bytes())
    assert "nobody sealed or certified" in error_of(*pull(folder, folder / "clear.state", "a.npz"))
    assert not (folder / "a.npz").exists()
    done = site(*pull(folder, folder / "clear.state", "a.npz", "--in-clear"))
    assert done.stdout.splitlines()[1] == "of a run in clear: the coordinator made it, and nobody certified it"
    np.testing.assert_array_equal(EncryptedModel.load(folder / "a.npz").rows[first], rows[first])


def test_a_member_gets_the_ciphertext_model(member: tuple[KeyDomain, Path]):
    """By the coordinator's file or by the number of a run that its node kept; the rows are the state's."""
    domain, folder = member
    site(*pull(folder, folder / "final.state", "a.npz", "--in-clear"))
    done = site(*pull(folder, "7", "b.npz", "--in-clear", "--identity", folder / "identity"))
    assert "round 0, classes no, yes" in done.stdout
    expected = state_of(domain, TINY)
    for name in ("a.npz", "b.npz"):
        model = EncryptedModel.load(folder / name)
        assert (model.network, model.classes, model.domain) == (TINY, ("no", "yes"), domain.card().fingerprint)
        for weight, rows in expected.rows.items():
            np.testing.assert_array_equal(model.rows[weight], rows)
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_the_plain_model_predicts_on_plain_images_what_ciphertext_does(
    member: tuple[KeyDomain, Path], plaintext: tuple[np.ndarray, np.ndarray]
):
    """Stock Keras loads it without fedpp's classes, and its logits are the decrypted ones to 1e-9."""
    domain, folder = member
    printed = site(*pull(folder, folder / "final.state", "model.keras", "--in-clear"))
    in_clear = "of a run in clear: the coordinator made it, and nobody certified it"
    assert printed.stdout == f"{folder / 'model.keras'}  round 0, classes no, yes\n{in_clear}\n"
    assert "note: this file holds the model in clear, readable for whoever gets it\n" in printed.stderr
    model = keras.models.load_model(folder / "model.keras")
    dataset = write_dataset(folder / "data", domain, plaintext)
    trainer = EncryptedTrainer(TINY, domain.evaluation_key().algebra(), Hyperparameters(), "float64")
    trainer.load(state_of(domain, TINY).rows)
    expected = encryption.decrypt(domain, trainer.logits(dataset, np.arange(11)))
    valid = np.ones((11, 2), bool)
    np.testing.assert_allclose(np.asarray(model([plaintext[0], valid])), expected, atol=1e-9)


def test_a_local_model_becomes_plain_as_a_pulled_one_does(member: tuple[KeyDomain, Path]):
    """A site's own model.npz has the weights of the domain's decryption; to itself it is not converted."""
    domain, folder = member
    rows = state_of(domain, TINY).rows
    EncryptedModel(TINY, domain.card().fingerprint, ("no", "yes"), rows).save(folder / "local.npz")
    printed = site(*pull(folder, folder / "local.npz", "local.keras"))
    assert "note: this file holds the model in clear" in printed.stderr
    weights = keras.models.load_model(folder / "local.keras").get_weights()
    for spec, weight in zip(TINY.weights(), weights, strict=True):
        np.testing.assert_allclose(weight, encryption.decrypt(domain, rows[spec.name]), atol=1e-12)
    assert "is a model.npz already: name --out model.keras" in error_of(*pull(folder, folder / "local.npz", "x.npz"))


def test_a_frame_form_s_plain_model_takes_images_that_are_not_mixed(
    tmp_path: Path, plaintext: tuple[np.ndarray, np.ndarray]
):
    """Its first convolution is given the mixing matrix's share: on plain frames its logits are those on mixed ones."""
    domain, folder = prepared(tmp_path, founded(scheme="more-frame"), PATCHES)
    site(*pull(folder, folder / "final.state", "model.keras", "--in-clear"))
    model = keras.models.load_model(folder / "model.keras")
    mixed = FrameCipher(domain, "float64", layout="patches", patch=2)
    frames = np.stack([mixed.frames("s", values)[..., 0] for values in plaintext[0]])
    from fedpp.learning import models

    on_mixed = models.plaintext(PATCHES, "float64")
    drawn = initial_weights(PATCHES, 0)
    on_mixed.set_weights([drawn[spec.name] for spec in PATCHES.weights()])
    valid = np.ones((11, 2), bool)
    expected = np.asarray(on_mixed([frames, valid]))
    np.testing.assert_allclose(np.asarray(model([plaintext[0], valid])), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("run", "out", "more", "line"),
    [
        ("nothing.sealed", "x.npz", (), "cannot read the model"),
        ("7", "x.npz", (), "if it is a run's number, name the node that kept its model (--identity)"),
        ("8", "x.npz", ("--identity", "identity"), "this site's node kept no model of run 8: it has 7"),
        ("8", "x.npz", ("--identity", "none"), "no model of run 8: it keeps those of runs in clear; of another, name"),
        ("final.state", "x.h5", (), "--out names model.npz, of ciphertext, or model.keras"),
        ("final.state", "passphrase.npz", (), "is there already"),
        (
            "passphrase",
            "x.npz",
            (),
            "passphrase is no model of a run, or is damaged: name the coordinator's model.sealed",
        ),
    ],
)
def test_mistakes_are_one_line(run: str, out: str, more: tuple[str, ...], line: str, member: tuple[KeyDomain, Path]):
    """What cannot be pulled is named, and nothing is written."""
    _, folder = member
    (folder / "passphrase.npz").write_bytes(b"")
    source = run if more else folder / run
    given = tuple(folder / text if text == "identity" else text for text in more)
    before = sorted(folder.iterdir())
    assert line in error_of(*pull(folder, source, out, *given))
    assert sorted(folder.iterdir()) == before


def test_another_domain_s_member_opens_nothing(member: tuple[KeyDomain, Path], tmp_path: Path):
    """Its key is refused by the domain's name."""
    domain, folder = member
    (tmp_path / "other").mkdir()
    _, other = prepared(tmp_path / "other", founded(), TINY)
    line = f"the model belongs to domain {domain.card().fingerprint[:16]}"
    assert line in error_of(*pull(other, folder / "final.state", "x.npz", "--in-clear"))
    assert not (other / "x.npz").exists()


def test_a_sealed_model_that_nobody_certified_is_refused(member: tuple[KeyDomain, Path]):
    """Any member of the domain can seal weights of its choice; no option takes them."""
    domain, folder = member
    sealed = b"".join(domain.state_sealer().seal("the result", [state_of(domain, TINY).to_bytes()]))
    (folder / "model.sealed").write_bytes(sealed)
    for options in ((), ("--in-clear", "--partial")):
        line = error_of(*pull(folder, folder / "model.sealed", "x.npz", *options))
        assert "sealed, of weights that it may have chosen, and nobody certified" in line
