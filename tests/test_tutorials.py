"""The tutorials, pasted into a shell from top to bottom."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_hospital", "three_hospitals"])
def test_a_tutorial_works_when_it_is_pasted(name: str, tmp_path: Path):
    """Each block runs after the one before it, in one shell, and none fails."""
    page = (ROOT / "docs" / "tutorial" / f"{name}.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    script = "set -eo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\nset -m\n" + "\n".join(blocks)
    environment = os.environ | {"FEDPP": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / {"one_hospital": "model/model.npz", "three_hospitals": "model.keras"}[name]).is_file()
