"""The site's own pages: the worked example runs, cards and tables say what the package and the benchmark files say."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "nbs" / "pages"
sys.path += [str(ROOT / "tools"), str(ROOT / "tools" / "site")]

import cards  # noqa: E402

import lesa_nb  # noqa: E402
from lesa_nb.layers.lesa import POSITIONS  # noqa: E402
from lesa_nb.models.resnet import TERMS  # noqa: E402


def blocks(name):
    "The Python of a page, each block on the line where it stands there."
    text = (PAGES / name).read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield "\n" * text.count("\n", 0, match.start(1)) + match[1]


def test_the_worked_example_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    positions, terms = dict(POSITIONS), dict(TERMS)
    names = {}
    try:
        for block in blocks("extending.md"):
            exec(compile(block, str(PAGES / "extending.md"), "exec"), names)
    finally:
        for registry, before in ((POSITIONS, positions), (TERMS, terms)):
            registry.clear()
            registry.update(before)
    assert {"RingTable", "ChannelGate", "again"} <= names.keys()


# what the pages say


def rows(name, columns):
    "The rows of a page's tables that have so many columns, heads left out."
    text = (PAGES / name).read_text(encoding="utf-8")
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if len(cells) == columns and not set(line) <= set("|-: "):
            yield cells


def test_symbols_are_names_of_a_layer_and_of_the_authors_files():
    from lesa_nb.weights._names import LAYER_NAMES

    layers = [lesa_nb.LESA(16, 16, fmap=4, heads=4, position=kind, deformable=True) for kind in ("flat", "factored")]
    seen = {}
    for _, _, ours, theirs, _ in rows("symbols.md", 5):
        for path in re.findall(r"`((?:context|local|gate)\.[\w.]+)`", ours):
            assert any(has(layer, path) for layer in layers), path
            seen[path] = theirs.strip("`")
    named = {ours: theirs for ours, theirs in seen.items() if ours in LAYER_NAMES}
    assert named == dict(LAYER_NAMES)
    assert seen["local.spatial.conv_offset"] == LAYER_NAMES["local.spatial"] + ".conv_offset"


def has(thing, path):
    for name in path.split("."):
        thing = getattr(thing, name, None)
    return thing is not None


@pytest.mark.parametrize("name", cards.facts())
def test_cards_count_what_the_networks_have(name):
    with torch.device("meta"):
        network = getattr(lesa_nb, name)()
    assert sum(p.numel() for p in network.parameters()) == cards.facts()[name]["parameters"]


@pytest.mark.parametrize("name", cards.facts())
def test_cards_read_the_benchmarks_and_say_what_was_not_run(name, tmp_path):
    drawn = cards.rows(name)
    fact = cards.facts()[name]
    result = json.loads((ROOT / "benchmarks" / "results" / f"{fact['benchmark']}.json").read_text())
    row = next(row for row in result["rows"] if row["name"] == fact["row"])
    numbers = [number for _, number, _ in drawn]
    if fact["kind"] == "classifier":
        assert f"{row['train']['images_per_second']['LESA']:.1f}" in numbers
    else:
        assert f"{row['seconds']['streaming']:.1f} s" in numbers
    assert numbers.count("not run") >= 3

    bare = tmp_path / "nbs" / "pages"  # a project in which nothing was measured: every such row says so
    bare.mkdir(parents=True)
    (bare / "networks.json").write_text((PAGES / "networks.json").read_text())
    measured = [line for line in cards.rows(name, tmp_path) if line[0] not in ("parameters", "input")]
    assert {number for what, number, _ in measured if "as published" not in what} == {"not run"}
    assert f"<!-- card of {name} -->" in (PAGES / "networks.md").read_text()
    assert "<!--" not in cards.fill(f"<!-- card of {name} -->")
