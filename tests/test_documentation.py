"""The documents say what the code does, in words that a reader understands."""

import io
import re
import subprocess
import sys
import tokenize
import tomllib
from dataclasses import fields
from pathlib import Path

import command_reference
import pytest
import yaml
from conftest import ROOT

from fedpp.config.contract_limits import RunLimits
from fedpp.config.site_policy import EvaluationLimits, SitePolicy
from simulations.scenario import Scenario

DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.name != "CHANGELOG.md"  # it tells old names
)
SOURCES = sorted(
    path
    for folder in ("fedpp", "sites", "coordinator", "simulations")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".j2", ".yaml", ".proto"} and "_pb2" not in path.name
)
FORBIDDEN = [
    line
    for line in (ROOT / "docs" / "forbidden_words.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PATTERN = re.compile("|".join(rf"(?<![\w-]){re.escape(phrase)}\b" for phrase in FORBIDDEN), re.IGNORECASE)


def texts_of(path: Path) -> str:
    """Return what a file says to people: all of a document, and of code its strings and comments."""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    spoken = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return "\n".join(
        token.string
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type in spoken and not token.string.startswith("b")  # labels of key derivations
    )


def phrases_in(text: str) -> list[str]:
    """Return the forbidden phrases of a text, whose lines may break within one."""
    return sorted({found.lower() for found in PATTERN.findall(" ".join(text.split()))})


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_and_no_message_holds_a_forbidden_phrase(path: Path):
    """docs/forbidden_words.txt: none of its phrases in a document, a docstring, a comment or a message."""
    assert phrases_in(texts_of(path)) == []


def test_forbidden_phrases_are_found():
    """The check above sees a phrase, also one that is broken over two lines."""
    assert phrases_in(f"The {FORBIDDEN[0].upper()} stands here") == [FORBIDDEN[0]]
    assert phrases_in("once\n    more, plaintext twin") == ["once more", "plaintext twin"]


def test_the_reference_of_commands_is_that_of_the_code():
    """docs/reference/commands.md is what `make docs` writes: every command, every option, its help."""
    assert command_reference.page() == command_reference.PAGE.read_text(), "run `make docs`"


def table(page: str) -> dict[str, str]:
    """Return the first two columns of a reference page's table."""
    lines = (ROOT / "docs" / "reference" / page).read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {row[0].strip("`| "): row[1].strip() for row in rows}


def test_the_reference_of_site_yaml_is_that_of_the_code():
    """docs/reference/site_policy.md has every setting of `site.yaml` with its default, and no other."""
    limits = {f"evaluation: {name.replace('_', '-')}": str(value) for name, value in vars(EvaluationLimits()).items()}
    limits |= {f"limits: {name}": _written(value) for name, value in RunLimits().to_mapping().items()}
    limits |= {"limits: members": "any", "limits: max-changes": "by size"}
    settings = {field.name.replace("_", "-") for field in fields(SitePolicy)} - {"evaluation", "limits"}
    listed = table("site_policy.md")
    assert set(listed) == settings | set(limits)
    assert {name: listed[name] for name in limits} == limits
    assert listed["min-other-sites"] == str(SitePolicy.min_other_sites)
    assert listed["secure-aggregation"] == SitePolicy.secure_aggregation


def _written(value: object) -> str:
    """Return a default as the reference has it: a list holds all that may stand in it."""
    return "all" if isinstance(value, list) else "none" if value is None else str(value)


def test_the_reference_of_scenarios_is_that_of_the_code():
    """docs/reference/scenario_settings.md has every setting of a scenario, and no other."""
    assert set(table("scenario_settings.md")) == {name.replace("_", "-") for name in Scenario.declarations()}


def test_readme_fits_its_reader():
    """At most 150 lines, no line of code over 90 characters, and its links lead somewhere."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    blocks = text.split("```")[1::2]
    assert [line for block in blocks for line in block.splitlines() if len(line) > 90] == []
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (ROOT / link).exists()] == []


def test_the_version_stands_once():
    """README names the wheel that pyproject.toml's version gives."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert set(re.findall(r"fedpp-(\d+\.\d+\.\d+)-py3", (ROOT / "README.md").read_text())) == {version}


def test_every_page_is_in_the_menu(tmp_path: Path):
    """The pages are built without a warning, and they load nothing from elsewhere."""
    config = yaml.safe_load((ROOT / ".mkdocs.yml").read_text())
    assert config["theme"]["highlightjs"] is False
    command = [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "-q", "-f", ROOT / ".mkdocs.yml"]
    done = subprocess.run([*command, "-d", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = [
        found
        for page in tmp_path.rglob("*.html")
        for found in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
    ]
    assert loaded == []
