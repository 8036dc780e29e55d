"""The README's two commands, taken from the README itself, and what must hold for them on a fresh machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_commands() -> list[str]:
    """The README's code blocks that are one make command each, in order."""
    return re.findall(r"```bash\n(make [^\n]+)\n```", README)


def make(*arguments: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_readme_begins_with_demo_and_test():
    assert readme_commands() == ["make demo", "make test"]


def test_the_commands_do_what_the_readme_says():
    demo, tests = (make("--dry-run", *command.split()[1:]) for command in readme_commands())
    assert "cliplet demo" in demo
    assert re.search(r"python -m pytest -n auto --maxprocesses 8 --dist worksteal\s*$", tests, re.MULTILINE)


def test_ci_runs_the_linters_and_the_readmes_test_command():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make lint" in lines and readme_commands()[1] in lines


def test_every_requirement_is_pinned_and_no_address_stands_anywhere():
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = {
        re.split(r"==", line)[0].strip().lower().replace("_", "-") for line in constraints.splitlines() if "==" in line
    }
    project = (ROOT / "pyproject.toml").read_text()
    blocks = re.findall(r"^(?:dependencies|train|dev) = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    needed = {
        name.lower().replace("_", "-") for block in blocks for name in re.findall(r'^\s*"([A-Za-z0-9_-]+)', block, re.M)
    }
    assert needed - {"cliplet"} <= pinned
    for file in ("constraints.txt", "pyproject.toml", "Makefile", ".ci/run"):
        text = (ROOT / file).read_text()
        assert "://" not in text and "--index" not in text and "--find-links" not in text, file


def test_links_in_the_documents_lead_somewhere():
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.slow
def test_a_fresh_clone_runs_both_commands(tmp_path: Path):
    """Clones, installs from nothing, runs demo and tests, then the tests again without a network or an installation."""
    clone = tmp_path / "cliplet"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    clean = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS")}
    clean["PYTHON"] = getattr(sys, "_base_executable", sys.executable)

    def run(command: str, **environment: str) -> str:
        done = subprocess.run(
            command.split(), cwd=clone, env={**clean, **environment}, capture_output=True, text=True, timeout=3600
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    demo, tests = readme_commands()
    output = run(demo)
    assert "R@1" in output and "queries.png" in output
    assert (clone / "runs" / "demo" / "queries.png").is_file()
    assert " passed" in run(tests)
    offline = {
        "PIP_NO_INDEX": "1",
        "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    again = run(tests, **offline)
    assert " passed" in again and "Collecting" not in again and "pip install" not in again
