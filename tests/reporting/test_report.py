"""Reports: names in the record; a page that is complete, self-contained, accessible, honest and reproducible."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from fedpp.errors import FederationError
from fedpp.learning.metrics import Decisions, Metrics, OperatingPoint, count, metrics, operating_point, presence
from fedpp.reporting.report import Report, load_report, write_report
from fedpp.reporting.report_page import render
from fedpp.reporting.report_privacy import privacy_of
from fedpp.reporting.report_results import (
    Baselines,
    Confusion,
    FindingResult,
    Parity,
    RefusedSite,
    RoundResult,
    SharedPatients,
    SiteBaselines,
    SiteResult,
)
from fedpp.reporting.report_summary import summary

METRICS = {
    "accuracy",
    "precision",
    "sensitivity",
    "specificity",
    "f1",
    "auc",
    "missed_diagnosis_rate",
    "npv",
}
COUNTS = {"found", "alarms", "cleared", "missed"}
FINAL = Metrics(0.3125, 0.875, 0.871, 0.844, 0.9, 0.857, 0.931, 0.156)
REFERENCE = replace(FINAL, auc=0.9294)
OWN_OF_NORTH = replace(FINAL, auc=0.8222)
UNDEFINED = Metrics(None, None, None, None, None, None, None, None)
REPORT = Report(
    scenario="demo <3>",
    seed=7,
    scheme="more",
    n=2,
    dtype="float32",
    mode="simulation",
    data="Phantom images.",
    sites=(
        SiteResult(
            "north",
            40,
            {"train": 70, "validation": 18, "test": 52},
            FINAL,
            SiteBaselines(REFERENCE, None, OWN_OF_NORTH),
        ),
        SiteResult("river & hill", None, {"train": 51, "validation": 12, "test": 20}, UNDEFINED),
        SiteResult("lake", 5, {"train": 9}, None),
    ),
    rounds=(
        RoundResult(
            1,
            ("north", "river & hill"),
            replace(UNDEFINED, loss=0.69),
            9.5,
            {"north": replace(UNDEFINED, loss=0.68), "river & hill": replace(UNDEFINED, loss=0.71)},
            excluded={"lake": "round 1: update: no reply in time"},
        ),
        RoundResult(
            2,
            ("north",),
            FINAL,
            75.0,
            {"north": replace(FINAL, auc=0.955)},
            2,
            {"lake": "round 2: update: no reply in time", "river & hill": "it rejected the model: loss"},
        ),
    ),
    final=FINAL,
    confusion=Confusion(("stable", "growing"), ((36, 4), (5, 27))),
    privacy=privacy_of(masked=True),
    refused=(RefusedSite("far", "another key domain"),),
    shared_patients=SharedPatients(6, 2),
    baselines=Baselines(REFERENCE, local_baseline={"north": replace(FINAL, auc=0.8111)}),
    parity=Parity(3.1e-4, 8.8e-5, (4e-4, 9e-4)),
    settings={"batch-size": 16},
    timing={"total_seconds": 190.0},
    versions={"fedpp": "0.1.0"},
)

SHORT = replace(REPORT, rounds=())  # without charts, which take most of a page's time
POINT = OperatingPoint(0.9, -1.25, 0.2227, Decisions(found=30, alarms=12, cleared=28, missed=2))
FINDINGS = replace(
    SHORT,
    confusion=None,
    findings={
        "Edema": FindingResult(60, 14, replace(FINAL, auc=0.777, sensitivity=0.551), POINT),
        "Fracture & <c>": FindingResult(12, 0, replace(UNDEFINED, accuracy=0.75), None),
    },
)


class Page(HTMLParser):
    """Collects what a page loads, its ids, its open elements, and its text."""

    VOID = frozenset({"meta", "br", "path", "use"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element and, unless it is void, open it."""
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that closes itself."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element, which must be this one."""
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text, but no style."""
        if self.open and self.open[-1] != "style":
            self.words.append(data)


PAGES: dict[str, tuple[str, Page]] = {}


def page_of(report: Report) -> tuple[str, Page]:
    """Return the page of a report, rendered once."""
    if repr(report) not in PAGES:
        html = render(report.to_mapping())
        PAGES[repr(report)] = html, Page(html)
    return PAGES[repr(report)]


def test_the_record_has_the_agreed_names(tmp_path: Path) -> None:
    """`report.json` has every name that other programs rely on, with its value."""
    write_report(tmp_path, REPORT)
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    contract = {"scenario", "seed", "scheme", "n", "sites", "rounds", "final", "baselines", "parity"}
    assert contract | {"timing", "versions", "refused", "privacy", "confusion"} <= set(record)
    assert [site["name"] for site in record["sites"]] == ["north", "river & hill", "lake"]
    for row in record["rounds"]:
        assert set(row) == METRICS | {"round", "sites", "val_loss", "seconds", "by_site", "attempt", "excluded"}
        assert all(set(figures) == METRICS | {"loss"} for figures in row["by_site"].values())
    assert [row["val_loss"] for row in record["rounds"]] == [0.69, 0.3125]
    assert record["rounds"][0]["sites"] == ["north", "river & hill"]
    assert set(record["final"]) == METRICS | {"loss"}
    assert record["final"]["auc"] == 0.931
    assert set(record["baselines"]) == {"plaintext_federated", "local_baseline"}
    assert set(record["baselines"]["plaintext_federated"]) == METRICS | {"loss"}
    assert set(record["baselines"]["local_baseline"]["north"]) == METRICS | {"loss"}
    assert record["rounds"][0]["by_site"]["river & hill"]["loss"] == 0.71
    assert [row["attempt"] for row in record["rounds"]] == [1, 2]
    assert record["rounds"][0]["excluded"] == {"lake": "round 1: update: no reply in time"}
    north, river, _ = record["sites"]
    assert set(north["baselines"]) == {"plaintext_federated", "local_baseline"}
    assert all(set(figures) == METRICS | {"loss"} for figures in north["baselines"].values())
    assert north["gain"] == {"auc": 0.931 - 0.8222, "accuracy": 0.0, "outcome": "better"}
    assert (river["baselines"], river["gain"]) == ({}, None)
    assert record["shared_patients"] == {"patients": 6, "trained_and_tested": 2, "central_excluded": None}
    assert record["parity"]["max_abs_probability_difference"] == 3.1e-4
    assert record["parity"]["max_abs_weight_difference"] == 8.8e-5


@pytest.mark.parametrize(
    "report",
    [
        REPORT,
        FINDINGS,
        replace(SHORT, operating_point=POINT),
        replace(SHORT, baselines=Baselines(plaintext_central=REFERENCE), shared_patients=SharedPatients(1, 1, 3)),
        replace(SHORT, baselines=Baselines(), shared_patients=None, parity=None, refused=(), mode="deployment"),
    ],
)
def test_a_report_survives_its_record(report: Report, tmp_path: Path) -> None:
    """Reading `report.json` gives the report that was written."""
    write_report(tmp_path, report)
    assert load_report(tmp_path / "report.json") == report


def test_same_report_gives_same_bytes(tmp_path: Path) -> None:
    """Equal reports give equal bytes, also in another process and with other Matplotlib settings."""
    write_report(tmp_path / "a", REPORT)
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8") == page_of(REPORT)[0]
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nsvg.fonttype: path\n", encoding="utf-8")
    script = (
        "import sys, pathlib, fedpp.reporting.report as r; out = pathlib.Path(sys.argv[1]);"
        "r.write_report(out / 'b', r.load_report(out / 'a' / 'report.json'))"
    )
    environment = {"MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script, tmp_path], env=environment, check=True)
    for name in ("report.json", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_page_loads_nothing() -> None:
    """The page is one file: no script, no URL, and references to its own parts only."""
    html, page = page_of(REPORT)
    assert "://" not in html
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    references = [value for _, attributes in page.tags for name, value in attributes.items() if "href" in name]
    references += re.findall(r"url\(([^)]*)\)", html)
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert len(references) > 10
    assert {reference for reference in references if (reference or "")[1:] not in ids} == set()


def test_the_page_is_well_formed() -> None:
    """Every element is closed, no id occurs twice, and each chart is well-formed XML."""
    html, page = page_of(REPORT)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        ET.fromstring(chart.replace("xlink:href", "href"))  # noqa: S314  our own page


def test_the_page_is_accessible() -> None:
    """Charts have a title and a description, header cells a scope, the page a language."""
    html, page = page_of(REPORT)
    ids = {attributes.get("id") for _, attributes in page.tags}
    for attributes in (attributes for tag, attributes in page.tags if tag == "svg"):
        assert attributes["role"] == "img"
        assert {attributes["aria-labelledby"], attributes["aria-describedby"]} <= ids
    assert "AUC: – in round 1, 0.931 in round 2." in html  # noqa: RUF001  an en dash
    assert "north: 0.680 in round 1, 0.312 in round 2. river &amp; hill: 0.710 in round 1, – in round 2." in html  # noqa: RUF001
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert headers
    assert all(header.get("scope") in {"row", "col", "colgroup"} for header in headers)
    assert ("html", {"lang": "en"}) in page.tags


def test_charts_use_the_colours_of_the_page() -> None:
    """No chart has a fixed colour, so light and dark mode apply to charts, too."""
    html, _ = page_of(REPORT)
    charts = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--accent)" in charts
    assert re.findall(r"#[0-9a-f]{6}\b", charts) == []


def test_the_page_shows_the_figures() -> None:
    """Headline figures have their counts, baselines are shown, undefined figures are dashes."""
    _, page = page_of(REPORT)
    for words in (
        "Sensitivity 0.844 27 of 32 positive found",
        "Specificity 0.900 36 of 40 negative cleared",
        "Missed diagnoses 0.156 5 of 32 positive missed",
        "AUCs and thresholds are from histograms of scores (binned, 63 bins).",
        "AUC 0.931 plaintext reference 0.929",
        "north 40 70 18 52 0.931 0.844 0.900 0.871 0.857 0.875",
        "river & hill – 51 12 20 – – – – – –",  # noqa: RUF001  en dashes
        "lake 5 9 0 0 – – – – – –",  # noqa: RUF001
        "far Refused: another key domain",
        "All admitted – 130 30 72 0.931",  # noqa: RUF001
        "Federated in plaintext (reference) 0.312 0.929",
        "Local baseline of north, plaintext 0.312 0.811",
        "north ▲ better 70 52 0.931 0.822 +0.109 0.875 0.875 0.000",
        "north Local baseline 0.312 0.822 0.844 0.900 0.871 0.857 0.875",
        "north Federated in plaintext (reference) 0.312 0.929",
        "lake 1 to 2 update: no reply in time",
        "river & hill 2 it rejected the model: loss",
        "until the hospitals accepted a model: 2 (attempt 2).",
        "1 river & hill 0.710",
        "2 north 0.312 0.955 0.844",
        "6 patients are known to more than one hospital (equal pseudonyms), and counted once at each.",
        "2 of them are in training at one hospital and in test at another",
        "true growing 5 16 % 27 84 %",
        "Largest difference of a predicted probability 3.1 × 10⁻⁴",  # noqa: RUF001  a times sign
        "Batch size 16",
        "Total 3 min 10 s",
        "fedpp 0.1.0",
    ):
        assert words in page.text


def test_the_page_states_what_is_not_protected() -> None:
    """The page states the limits, and calls nothing secure or private."""
    _, page = page_of(REPORT)
    for words in (
        "obfuscation of data in use, not a secure cipher",
        "trainer holds the evaluation key",
        "can steer the model within the bounds of a step",
        "No differential privacy was applied",
        "simulated on one computer",
    ):
        assert words in page.text
    claims = page.text.replace("not a secure cipher", "").replace("No differential privacy", "")
    claims = claims.replace("Secure aggregation", "")
    assert re.findall(r"(?i)\b(secure|private|privacy|safe|anonym\w*)\b", claims) == []
    _, deployed = page_of(replace(SHORT, mode="deployment"))
    assert "on one computer" not in deployed.text
    _, clear = page_of(replace(SHORT, privacy=privacy_of(masked=False)))
    assert "SECURE AGGREGATION WAS OFF" in clear.text
    assert "readable by the coordinator" in clear.text
    assert "SECURE AGGREGATION WAS OFF" not in page.text


def test_figures_that_were_not_opened_have_no_columns() -> None:
    """Without figures of single hospitals their table has splits alone, and says where the figures are."""
    closed = replace(SHORT, sites=tuple(replace(site, test=None) for site in SHORT.sites))
    for report, shown in ((SHORT, True), (closed, False)):
        section = page_of(report)[0].partition('id="hospitals"')[2].partition("</section>")[0]
        assert ("Specificity" in section) is shown
        assert ("Figures of single hospitals were not opened" in section) is not shown
        assert "Validation" in section


def test_the_page_escapes_texts_of_sites() -> None:
    """A name that looks like markup is shown as text."""
    evil = "<script>alert(1)</script>"
    report = replace(SHORT, scenario=evil, refused=(RefusedSite(evil, evil),), settings={evil: evil})
    html, page = page_of(report)
    assert "<script" not in html
    assert f"{evil} Refused: {evil}" in page.text


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        (SharedPatients(1, 0), ["1 patient is known to", "counted once at each. None of them is in training"]),
        (SharedPatients(3, 1, 1), ["1 of them is in training", "1 training sequence of patients in", "was excluded"]),
        (SharedPatients(3, 2, 7), ["2 of them are in training", "7 training sequences of", "were excluded from it"]),
        (SharedPatients(0, 0, 0), []),
        (None, []),
    ],
)
def test_the_page_reports_patients_at_several_hospitals(shared: SharedPatients | None, words: list[str]):
    """Their number and its consequence for the tests are shown if there are any."""
    _, page = page_of(replace(SHORT, shared_patients=shared))
    assert all(part in page.text for part in words)
    assert ("more than one hospital" in page.text) == bool(words)


def test_the_page_shows_the_pooled_baseline() -> None:
    """The pooled baseline has a row; without local baselines there is no table of gains."""
    report = replace(with_local(None, plaintext_central=REFERENCE), baselines=Baselines(plaintext_central=REFERENCE))
    _, page = page_of(report)
    assert "All data in one place, plaintext 0.312 0.929" in page.text
    assert "Gain of each hospital" not in page.text
    assert "north All data in one place, plaintext 0.312 0.929" in page.text


def with_local(local: Metrics | None, federated: Metrics = FINAL, **others: Metrics) -> Report:
    """Return a report whose first site has these figures: local baseline, federated model, other baselines."""
    north, *rest = REPORT.sites
    return replace(
        SHORT, sites=(replace(north, test=federated, baselines=SiteBaselines(local_baseline=local, **others)), *rest)
    )


BETTER_LOCAL = replace(FINAL, auc=0.97, accuracy=0.85)


@pytest.mark.parametrize(
    ("local", "federated", "outcome", "cells"),
    [
        (OWN_OF_NORTH, FINAL, "▲ better", "0.931 0.822 +0.109 0.875 0.875 0.000"),
        (FINAL, FINAL, "= as good", "0.931 0.931 0.000 0.875 0.875 0.000"),
        (BETTER_LOCAL, FINAL, "▼ worse", "0.931 0.970 −0.039 0.875 0.850 +0.025"),  # noqa: RUF001  a minus sign
        (FINAL, replace(FINAL, auc=0.93099), "▼ worse", "0.931 0.931 −0.000"),  # noqa: RUF001
        (replace(FINAL, auc=None, accuracy=0.9), FINAL, "▼ worse", "0.931 – – 0.875 0.900 −0.025"),  # noqa: RUF001
        (UNDEFINED, FINAL, "–", "0.931 – – 0.875 – –"),  # noqa: RUF001  en dashes
    ],
)
def test_a_site_with_a_better_local_baseline_is_named_under_the_result(
    local: Metrics, federated: Metrics, outcome: str, cells: str
) -> None:
    """By AUC, else by accuracy; the site's row says so, too."""
    html, page = page_of(with_local(local, federated))
    assert f"north {outcome} 70 52 {cells}" in page.text
    worse = outcome.endswith("worse")
    assert (
        "Worse than the local baseline: north. On its own test patients the hospital’s local baseline is" in page.text  # noqa: RUF001
    ) == worse
    assert ('<tr class="worse">' in html) == worse


def test_the_page_shows_the_pooled_model_at_each_site() -> None:
    """Its figures on the site's own test split are in the site's row."""
    _, page = page_of(with_local(OWN_OF_NORTH, plaintext_central=replace(FINAL, auc=0.944, accuracy=0.888)))
    assert "north ▲ better 70 52 0.931 0.822 +0.109 0.944 0.875 0.875 0.000 0.888" in page.text
    assert "Pooled is the model of all data in one place" in page.text


def test_a_deployment_has_a_page_without_baselines() -> None:
    """Comparisons that a deployment cannot make are absent; its settings are shown by name and value."""
    sites = tuple(replace(site, baselines=SiteBaselines()) for site in REPORT.sites)
    facts = {"mode": "deployment", "baselines": Baselines(), "parity": None, "shared_patients": None}
    settings = {"batch-size": 16, "secure-aggregation": True, "initial-model": False}
    report = replace(REPORT, **facts, sites=sites, settings=settings)
    _, page = page_of(report)
    assert "batch-size 16 secure-aggregation yes initial-model no" in page.text
    for words in (
        "Gain of each hospital",
        "Comparison with other ways",
        "Does encryption",
        "Worse than",
        "in plaintext",
        "reference",
    ):
        assert words not in page.text
    local = replace(sites[0], baselines=SiteBaselines(local_baseline=BETTER_LOCAL))
    _, page = page_of(replace(report, sites=(local, *sites[1:]), rounds=()))
    assert "the hospital’s local baseline, and the difference." in page.text  # noqa: RUF001
    assert "Worse than the local baseline: north." in page.text


@pytest.mark.parametrize(("sites", "named"), [(1, None), (2, True), (15, True), (16, False)])
def test_curves_of_sites_are_named_where_they_can_be_distinguished(sites: int, named: bool | None) -> None:
    """Up to 15 sites differ by colour or marker; more sites are plain lines; a single site has no curve of its own."""
    names = [f"site \u4e00 {number}" for number in range(sites)]
    rounds = tuple(RoundResult(k, tuple(names), FINAL, 1.0, dict.fromkeys(names, FINAL)) for k in (1, 2))
    html, page = page_of(replace(REPORT, rounds=rounds))
    curves = re.findall(r'<span class="curve" style="([^"]*)"\s*aria-hidden="true">(.*?)</span> (.*?)</li>', html)
    labels = ["All hospitals", *(names if named else [f"each of {sites} hospitals"])]
    assert [label for *_, label in curves] == ([] if named is None else labels)
    assert len({tuple(look) for *look, _ in curves}) == len(curves)
    assert len(re.findall("<svg", html)) == (2 if named is None else 4)
    assert page.open == []


def test_exclusions_for_one_reason_are_one_row() -> None:
    """A site has one row for all rounds with the same reason, and another row for another reason."""
    reasons = {1: "update: late", 2: "update: late", 4: "update: late", 5: "a test", 6: "update: late"}
    rounds = tuple(
        replace(REPORT.rounds[1], round=k, excluded={"lake": f"round {k}: {reasons[k]}"} if k in reasons else {})
        for k in range(1, 7)
    )
    _, page = page_of(replace(REPORT, rounds=rounds))
    assert "Reason lake 1 to 2, 4, 6 update: late lake 5 a test Rounds that were retried" in page.text
    _, page = page_of(replace(REPORT, rounds=(replace(REPORT.rounds[0], excluded={}),)))
    assert "excluded" not in page.text
    assert "retried" not in page.text


@pytest.mark.parametrize(
    ("parity", "words"),
    [
        (Parity(3e-4, None, (4e-4, 1e-4)), "Conclusion not more than rounding alone changes"),
        (Parity(5e-4, None, (4e-4, 1e-4)), "Conclusion more than rounding alone changes"),
        (Parity(math.nan, None, (math.nan,)), "Conclusion more than rounding alone changes"),
        (Parity(math.nan, None, (4e-4,)), "Conclusion more than rounding alone changes"),
        (Parity(math.nan, None), "predicted probability not finite"),
        (Parity(0.0, None), "predicted probability none"),
    ],
)
def test_parity_is_compared_with_its_control(parity: Parity, words: str) -> None:
    """A difference passes if the largest draw of the control is at least as large; non-finite values never pass."""
    _, page = page_of(replace(SHORT, parity=parity))
    assert words in page.text
    assert ("Conclusion" in page.text) == bool(parity.control_probability_differences)


def test_a_report_needs_a_statement_of_privacy() -> None:
    """A report cannot be made without saying whether the run used secure aggregation."""
    facts = {name: value for name, value in vars(REPORT).items() if name != "privacy"}
    with pytest.raises(TypeError, match="privacy"):
        Report(**facts)


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    """Without rounds, sites and test sequences the page says so, and nothing fails."""
    empty = Report(
        scenario="empty",
        seed=0,
        scheme="more",
        n=2,
        dtype="float32",
        mode="deployment",
        data="",
        sites=(),
        rounds=(),
        final=UNDEFINED,
        confusion=Confusion(("a", "b"), ((0, 0), (0, 0))),
        privacy=privacy_of(masked=False),
    )
    write_report(tmp_path, empty)
    _, page = page_of(empty)
    assert "No round was completed." in page.text
    assert "0 of 0 positive found" in page.text
    assert load_report(tmp_path / "report.json") == empty


def test_figures_that_are_not_finite_become_null(tmp_path: Path) -> None:
    """If the plaintext reference diverged, the record is still standard JSON, with null for the difference."""
    write_report(tmp_path, replace(SHORT, parity=Parity(math.nan, math.inf)))
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    parity = json.loads(text, parse_constant=pytest.fail)["parity"]
    assert (parity["max_abs_probability_difference"], parity["max_abs_weight_difference"]) == (None, None)
    returned = load_report(tmp_path / "report.json").parity
    assert returned is not None
    assert math.isnan(returned.max_abs_probability_difference)


def test_a_failure_leaves_earlier_files(tmp_path: Path) -> None:
    """If rendering fails, the earlier files are unchanged and no other file is left."""
    write_report(tmp_path, SHORT)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = replace(SHORT, sites=(SiteResult("x", "many", {}, None),))
    with pytest.raises(TypeError):
        write_report(tmp_path, broken)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert set(before) == {"report.json", "report.html"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read the report"),
        ("[]", "not a report"),
        ("{}", r"not a report.*sites"),
        (json.dumps({**REPORT.to_mapping(), "surprise": 1}), r"not a report.*surprise"),
        (json.dumps({**REPORT.to_mapping(), "final": {"auc": 1}}), "not a report"),
        (json.dumps({**REPORT.to_mapping(), "sites": [{**REPORT.sites[0].to_mapping(), "gain": None}]}), "the gain of"),
    ],
)
def test_other_files_are_rejected(text: str, message: str, tmp_path: Path) -> None:
    """A damaged file, and a record with other names, are rejected in one line."""
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FederationError, match=message):
        load_report(path)


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(FederationError, match="nowhere.json"):
        load_report(tmp_path / "nowhere.json")


def test_confusion_needs_a_name_for_each_class() -> None:
    """The number of names must be that of the matrix."""
    with pytest.raises(FederationError, match="confusion matrix of 2 classes"):
        Confusion(("a", "b", "c"), ((1, 0), (0, 1)))


def test_the_summary_shows_the_final_figures() -> None:
    """The summary has accuracy, sensitivity, specificity, F1 and AUC, the plaintext reference's, and refused sites."""
    lines = summary(REPORT).splitlines()
    assert lines[0] == "demo <3>: 3 sites, 2 rounds, 72 test sequences"
    assert "  sensitivity 0.844   plaintext 0.844" in lines
    assert "  AUC         0.931   plaintext 0.929   (binned, 63 bins)" in lines
    assert "  refused: far: another key domain" in lines
    assert [line.split()[0] for line in lines[1:6]] == [
        "accuracy",
        "sensitivity",
        "specificity",
        "F1",
        "AUC",
    ]
    assert "  local baseline of north, plaintext: AUC 0.811, 0.822 on its own tests (federated 0.931)" in lines
    assert "  patients at several sites: 6, of whom 2 in training at one and in test at another" in lines
    assert (
        "  local baseline of north, plaintext: AUC 0.811, 0.970 on its own tests (federated 0.931: WORSE)"
        in summary(with_local(BETTER_LOCAL))
    )
    deployed = replace(with_local(replace(FINAL, auc=None, accuracy=1.0)), mode="deployment", baselines=Baselines())
    assert (
        "  local baseline of north: AUC not defined on its own tests (federated 0.931: WORSE in accuracy)"
        in summary(deployed)
    )
    assert "AUC         not defined" in summary(replace(REPORT, final=UNDEFINED, baselines=Baselines()))
    pooled = summary(
        replace(REPORT, baselines=Baselines(plaintext_central=REFERENCE), shared_patients=SharedPatients(0, 0))
    )
    assert "  all data in one place, plaintext: AUC 0.929" in pooled.splitlines()
    assert "several sites" not in pooled


def test_report_loads_quickly() -> None:
    """Importing the report imports neither Matplotlib nor Jinja: command lines import it for their help."""
    script = (
        "import sys, fedpp.reporting.report; print(sorted({'matplotlib', 'jinja2', 'tensorflow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_record_has_the_figures_of_each_finding(tmp_path: Path) -> None:
    """Each finding has figures, its numbers of known and present sequences, and an operating point or null."""
    write_report(tmp_path, FINDINGS)
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert record["confusion"] is None
    assert list(record["findings"]) == ["Edema", "Fracture & <c>"]
    edema, fracture = record["findings"].values()
    assert set(edema) == METRICS | {"loss", "known", "present", "operating_point"}
    assert (edema["known"], edema["present"], edema["auc"]) == (60, 14, 0.777)
    assert set(edema["operating_point"]) == {"wanted", "threshold", "probability", "decisions"}
    assert set(edema["operating_point"]["decisions"]) == METRICS - {"auc", "accuracy"} | COUNTS
    assert fracture["operating_point"] is None
    assert set(record["final"]) == METRICS | {"loss"}


def test_the_page_shows_each_finding() -> None:
    """Headline figures name the number of averaged findings; each finding has a row, undefined figures a dash."""
    html, page = page_of(FINDINGS)
    for words in (
        "Each of 2 findings is evaluated separately",
        "AUC 0.931 plaintext reference 0.929",
        "Sensitivity 0.844 mean of 1 finding ",
        "Accuracy 0.875 mean of 2 findings",
        "Edema 60 14 0.777 0.551 0.900 0.871 0.857 0.875",
        "Fracture & <c> 12 0 – – – – – 0.750",  # noqa: RUF001  en dashes
        "reaches a sensitivity of 0.9 on all hospitals’ validation patients",  # noqa: RUF001
        "Edema 0.223 0.938 0.062 0.700 0.714 0.933 0.811",
    ):
        assert words in page.text
    assert "Confusion matrix" not in page.text
    assert "<c>" not in html
    assert page.open == []
    assert page.text.count("Fracture & <c>") == 1  # it has no operating point


def test_the_page_shows_the_operating_point() -> None:
    """A single label has an operating point and a confusion matrix; without a point there is no section on it."""
    _, page = page_of(replace(SHORT, operating_point=POINT))
    assert "All sequences 0.223 0.938 0.062 0.700 0.714 0.933 0.811" in page.text
    assert "Confusion matrix" in page.text
    _, without = page_of(SHORT)
    assert "Operating point" not in without.text


def test_a_finding_s_result_is_that_of_its_counts() -> None:
    """Figures are of the test counts, the threshold is chosen on the validation counts."""
    validation = count([1, 1, 0], presence(np.array([2.0, 1.0, 0.0])))
    test = count([1, 0, 0], presence(np.array([3.0, 1.5, -1.0])))
    point = operating_point(validation, test, 0.9)
    assert FindingResult.of(validation, test, 0.9) == FindingResult(3, 1, metrics(test), point)


def test_the_summary_shows_findings_and_points() -> None:
    """Each finding has a line with AUC, number of sequences and operating point."""
    lines = summary(FINDINGS).splitlines()
    point = (
        "threshold 0.223, chosen for a sensitivity of 0.9 on validation data: on test data sensitivity 0.938, "
        "specificity 0.700"
    )
    assert f"  Edema: AUC 0.777, present in 14 of 60; {point}" in lines
    assert "  Fracture & <c>: AUC not defined, present in 0 of 12" in lines
    assert f"  {point}" in summary(replace(SHORT, operating_point=POINT)).splitlines()
