"""The README and the documentation tell the truth: their blocks run and print what they show."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from _sources import ROOT, modules, source_path

TREE = ROOT.parent
PAGES = [TREE / "README.md", TREE / "CHANGELOG.md", *sorted((TREE / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n+```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
VERSIONS = re.compile(r"^ +versions .*", re.MULTILINE)  # part of a printed answer

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)


def run(page: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Run a page's Python blocks in order; give what they bound and (shown, printed) pairs."""
    text = page.read_text()
    names: dict[str, Any] = {"__name__": page.stem}
    outputs = []
    for block in BLOCK.finditer(text):
        lines_above = text.count("\n", 0, block.start("code"))
        code = compile("\n" * lines_above + block["code"], page, "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, names)
        outputs.append((block["printed"] or "", out.getvalue()))
    return names, outputs


@page
def test_blocks_print_what_they_show(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for shown, printed in run(page)[1]:
        assert VERSIONS.sub("", printed).rstrip() == VERSIONS.sub("", shown).rstrip()


def test_every_question_of_the_readme_can_be_asked() -> None:
    names, _ = run(TREE / "README.md")
    section = (TREE / "README.md").read_text().split("## What you can ask")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert rows
    for row in rows:
        code = re.findall(r"`([^`]+)`", row.strip("| ").split(" | ")[-1])
        assert len(code) == 1, f"expected one piece of code in: {row}"
        assert eval(code[0], names) is not None


@page
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page.read_text())
    local = {a or b for a, b in targets if not re.match(r"https?:|#", a or b)}
    missing = [name for name in local if not (page.parent / name.split("#")[0]).exists()]
    assert not missing


@page
def test_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (TREE / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= targets
    for script in re.findall(r"python ((?:examples|benchmarks)/\w+\.py)", text):
        assert (TREE / script).exists(), script


def test_reference_lists_every_public_module() -> None:
    public = {
        f"pyro_causal.{name}"
        for name in modules()
        if source_path(name).name != "__init__.py" and not re.search(r"(^|\.)_", name)
    }
    listed = re.findall(r"^   (pyro_causal\.\S+)$", (TREE / "docs/reference.md").read_text(), re.M)
    assert set(listed) == public
    assert len(listed) == len(public)
