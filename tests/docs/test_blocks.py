"""Every block of code of the README and the documentation is what it says it is.

Blocks for a shell are typed (test_shell.py, test_tour.py), those of TOML are configuration files, those of Python are
executed, YAML and JSON are parsed. Whatever has no language is shown, not run, and must not hide a command.
"""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from gopher.cli import read_plan
from tests.support.pages import PAGES, ROOT, blocks

BLOCKS = [block for page in PAGES for block in blocks(page)]


def of(*languages):
    found = [block for block in BLOCKS if block.language in languages]
    assert found
    return pytest.mark.parametrize("block", found, ids=str)


@of("toml")
def test_toml_block_is_a_configuration(block, tmp_path):
    path = tmp_path / "gopher.toml"
    path.write_text(block.text)
    plan = read_plan(["--config", str(path), "--check-config"], {})
    assert plan.mirrors
    assert not plan.warnings


@of("python")
def test_python_block_runs(block, tmp_path):
    shutil.copy(ROOT / "demo/demo.pcap", tmp_path / "today.pcap")
    (tmp_path / "block.py").write_text(block.text)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); exec(open('block.py').read())"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@of("yaml")
def test_yaml_block(block):
    assert isinstance(yaml.safe_load(block.text), dict)


def test_every_block_is_of_a_known_kind():
    for block in BLOCKS:
        if block.language == "json":
            json.loads(block.text)
        assert block.language in ("sh", "toml", "python", "yaml", "json", "hex", "text", "", "{toctree}"), block


def test_what_is_only_shown_hides_no_command():
    for block in BLOCKS:
        if block.language in ("", "text"):
            hidden = re.search(r"^\s*(?:sudo )?gopher (?:-|--)", block.text, re.MULTILINE)
            assert hidden is None, block
