"""The pinned development environment holds what settings.ini asks for, each file with its hash, and names no host."""

import json
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import lock  # noqa: E402


@pytest.fixture(scope="module")
def text():
    return (ROOT / lock.LOCK).read_text(encoding="utf-8")


def test_every_file_has_a_hash(text):
    pinned = lock.locked(text)
    entries = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    assert len(pinned) == len(entries) > 100  # nothing but exact versions
    assert all(hashes for _, hashes in pinned.values())
    assert sum(len(hashes) for _, hashes in pinned.values()) == text.count("--hash=")


def test_what_settings_ask_for_is_pinned_within_its_bounds(text):
    pinned = {canonicalize_name(name): version for name, (version, _) in lock.locked(text).items()}
    asked = [Requirement(one) for one in lock.wanted()]
    assert len(asked) > 20
    for one in asked:
        name = canonicalize_name(one.name)
        assert name in pinned, f"{name} is not pinned: run `make lock`"
        assert one.specifier.contains(pinned[name]), f"{one} is pinned at {pinned[name]}: run `make lock`"


def test_no_host_is_named(text):
    "Whoever installs chooses where from; the hashes say what."
    assert "://" not in text and not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", text)


def test_what_is_read_is_what_was_written():
    one, two = "a" * 64, "b" * 64
    first = f"one==1.0 \\\n    --hash=sha256:{one} \\\n    --hash=sha256:{two}\n"
    written = f"# head\n{first}two-parts==2+cpu \\\n    --hash=sha256:{two}\n"
    assert lock.locked(written) == {"one": ("1.0", [one, two]), "two-parts": ("2+cpu", [two])}


@pytest.mark.slow
def test_the_list_of_parts(text):
    "`make sbom` lists every pinned package."
    lock.sbom()
    made = json.loads((ROOT / lock.SBOM).read_text(encoding="utf-8"))
    assert made["bomFormat"] == "CycloneDX"
    listed = {(part["name"], part["version"]) for part in made["components"]}
    assert listed == {(name, version) for name, (version, _) in lock.locked(text).items()}
