"""Each extra alone: every command works, or says in one sentence what to install, before anything is written."""

import configparser
import re
import sys
from pathlib import Path

import pytest
from test_cli_fuzz import made, small_lines, what_is_wrong  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = configparser.ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
MODULES = {"scikit-learn": "sklearn"}  # where a package has another name when it is imported
#: extras that are for people who use the library -> what `import` calls their packages
EXTRAS = {
    key.removesuffix("_requirements"): {
        MODULES.get(name, name.replace("-", "_")) for name in re.findall(r"(?:^| )([\w-]+)", value)
    }
    for key, value in SETTINGS["DEFAULT"].items()
    if key.endswith("_requirements") and not key.startswith(("dev", "browser", "site"))
}
#: command -> the extra without which it has nothing to do, for the lines below
NEEDS = {("demo",): "demo", ("export",): "export", ("train", "coco"): "coco", ("eval", "coco"): "coco"}
NEEDS |= {("export-testdev",): "coco", ("predict",): "coco", ("verify-data", "coco"): "coco"}


def hide(monkeypatch, packages):
    "As if they were not installed."
    for package in packages:
        for name in [package, *(known for known in sys.modules if known.startswith(f"{package}."))]:
            monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("extra", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in EXTRAS)])
def test_an_extra_alone(extra, made, tmp_path, monkeypatch, capsys):  # noqa: F811
    own = EXTRAS.get(extra, set())
    base = set(re.findall(r"(?:^| )([\w-]+)", SETTINGS["DEFAULT"]["requirements"]))
    hide(monkeypatch, set().union(*EXTRAS.values()) - own - base)
    lines = small_lines(made)
    lines["export",]["--out"] = ["net.onnx"]
    if extra == "export":
        del lines["export",]  # takes a minute, and has tests of its own
    for i, (command, line) in enumerate(lines.items()):
        words = [*command, *line.get("", []), *(word for flag in line if flag for word in (flag, *line[flag]))]
        wrong, status, err = what_is_wrong(words, made, tmp_path / str(i), capsys)
        needed = NEEDS.get(command, extra)
        assert not wrong, (words, wrong, err)
        if needed == extra:
            assert status == 0, (words, err)
        elif command == ("verify-data", "coco"):  # its table names the missing extra
            assert status == 1, (words, err)
        elif command in NEEDS:
            assert status == 2 and f"pip install 'lesa_nb[{needed}]'" in err, (words, err)
        else:
            assert status == 0, (words, err)
