"""What a site may say of itself."""

import json

import pytest
from flwr.app import ConfigRecord

from fedpp.errors import FederationError
from fedpp.protocol.site_description import SiteDescription

GOOD = {
    "name": "Nord-Süd 1",
    "domain": "d" * 64,
    "n": 2,
    "frames": 3,
    "height": 16,
    "width": 16,
    "channels": 1,
    "classes": ["no", "yes"],
    "multi_label": False,
    "gaps": True,
    "patch": 0,
    "sequences": [3, 2, 1],
    "patients": [3, 2, 1],
}


@pytest.mark.parametrize("change", [{"classes": []}, {"classes": ["no", "yes"]}, {"multi_label": True, "patch": 8}])
def test_a_description_survives_the_wire(change: dict[str, object]) -> None:
    """Flower's record and JSON carry it whole, labels or none."""
    values = {**GOOD, **change}
    site = SiteDescription.from_mapping(ConfigRecord(values))
    assert site.to_mapping() == values
    assert SiteDescription.from_mapping(json.loads(json.dumps(site.to_mapping()))) == site


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", ""),
        ("name", 7),
        ("name", "a\nrefused b: forged"),
        ("name", "a\x1b[2J"),
        ("name", "a" * 201),
        ("domain", ["d"]),
        ("n", True),
        ("frames", 2.0),
        ("height", -1),
        ("width", 2**31 + 1),
        ("channels", "1"),
        ("classes", "no"),
        ("classes", ["no", "no"]),
        ("classes", ["no", "y\x00"]),
        ("classes", [0, 1]),
        *(("name", name) for name in (" East", "Ea\U0001d159st", "\N{HOSPITAL}" * 51, "\uff25ast")),
        ("multi_label", 1),
        ("multi_label", None),
        ("patch", -1),
        ("patch", True),
        ("gaps", "some"),
        ("gaps", ["none"]),
        ("gaps", 1),
        ("sequences", [3, 2]),
        ("sequences", 3),
        ("sequences", [3, 2, -1]),
        ("patients", [3, 2, 1.0]),
        ("patients", [2**40, 2, 1]),
    ],
)
def test_a_description_that_does_not_fit_is_refused(name: str, value: object) -> None:
    """Another type, a number out of range, or a name that is no printable line is refused by its field."""
    with pytest.raises(FederationError, match=f"site description: {name.replace('_', '-')}(:| must be)") as raised:
        SiteDescription.from_mapping({**GOOD, name: value})
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("change", [{"x\x1b": 1}, {"name": None}])
def test_other_fields_are_refused(change: dict[str, object]) -> None:
    """Unknown and missing fields are named, printably."""
    values = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(FederationError, match="(unknown 'x|missing name)") as raised:
        SiteDescription.from_mapping(values)
    assert str(raised.value).isprintable()
