"""The test command itself: whatever could pass without proof must fail, and be named."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DRIVER = ROOT / "tools" / "test.py"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
FIGURE = {"output_type": "display_data", "metadata": {}, "data": {"image/png": PNG}}
TESTS = [f"assert 1 + {n} > {n}" for n in range(5)]
ODD = "two words; ünïcode"  # a folder's name that breaks careless quoting
SETTINGS = """[DEFAULT]
repo = toy
lib_name = toy
version = 0.0.1
user = toy
author = A. Toy
author_email = toy@example.com
description = A toy
branch = main
lib_path = toy
nbs_path = nbs
doc_path = _docs
recursive = {recursive}
tst_flags = {flags}
update_pyproject = False
"""


def cell(source, kind="code", number=0, outputs=()):
    made = {"cell_type": kind, "id": f"cell-{number:02d}", "metadata": {}, "source": source.splitlines(True)}
    return {**made, "execution_count": None, "outputs": list(outputs)} if kind == "code" else made


def notebook(*sources, figure=True, kernel=None, outputs=()):
    "A notebook of code cells; `(kind, source)` for another kind. One saved figure, and a title."
    cells = [cell("# A title\n> A promise.", "markdown")]
    for number, source in enumerate(sources, 1):
        kind, text = source if isinstance(source, tuple) else ("code", source)
        cells.append(cell(text, kind, number))
    last = next(c for c in reversed(cells) if c["cell_type"] == "code")
    last["outputs"] = [FIGURE] * figure + list(outputs)
    kernel = {"kernelspec": kernel or {"display_name": "python3", "language": "python", "name": "python3"}}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n", encoding="utf-8")


def project(folder, notebooks=(), tests=(), flags="", recursive=False):
    "A small nbdev project."
    write(folder / "settings.ini", SETTINGS.format(flags=flags, recursive=recursive))
    write(folder / "toy" / "__init__.py", '__version__ = "0.0.1"\n')
    (folder / "nbs").mkdir()
    (folder / "tests").mkdir()
    for name, content in dict(notebooks).items():
        write(folder / "nbs" / name, content)
    for name, content in dict(tests).items():
        write(folder / "tests" / name, content)
    return folder


def drive(folder, *options, jobs="1", **variables):
    "Run the driver; returns (exit status, output, lines that passed, lines that failed, the repeated failures)."
    done = subprocess.run(
        [sys.executable, str(DRIVER), "--root", str(folder), "--jobs", jobs, *options],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=900,
        env={**os.environ, "FORKED_PRELOAD": "", **variables},
    )
    output = done.stdout
    assert not done.stderr or done.stderr.startswith("Timeout ("), done.stderr  # where a test hung
    closing = output.splitlines()[-1]
    counts = re.fullmatch(r"(\d+) passed, (\d+) failed", closing)
    assert counts, output
    passed = re.findall(r"^  ok     +(?:[\d.]+ s)?  +(.*)$", output, re.MULTILINE)
    failed = re.findall(r"^  FAILED +(?:[\d.]+ s)?  +(.*)$", output, re.MULTILINE)
    assert [len(passed), len(failed)] == [int(n) for n in counts.groups()], output  # every line is counted once
    assert done.returncode == (1 if failed else 0), output
    repeated = output.split("\nfailed:\n")[-1] if failed else ""
    return done.returncode, output, "\n".join(passed), "\n".join(failed), repeated


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    "One run over notebooks that each hide one fault."
    tagged = notebook(*TESTS, "assert False")
    tagged["cells"][6]["metadata"]["tags"] = ["skip-execution"]  # what nbclient takes for a wish
    folder = project(
        tmp_path_factory.mktemp("faulty"),
        {
            "01_good.ipynb": notebook("#| export\nx = 1", *TESTS),
            "02_fails.ipynb": notebook("x = 0", "# a comment\n1 / x", *TESTS),
            "03_skipped.ipynb": notebook("#| eval: false\nraise ValueError", *TESTS),
            "04_exits.ipynb": notebook(*TESTS, "import sys\nsys.exit(0)", "assert False"),
            "05_gone.ipynb": notebook(*TESTS, "import os\nos._exit(0)", "assert False"),
            "06_untested.ipynb": notebook("x = 1", "y = x"),
            "07_unrun.ipynb": notebook(("raw", "---\nskip_exec: true\n---"), *TESTS, "assert False"),
            "08_flagged.ipynb": notebook("#| slow\nassert False", *TESTS),
            "09_julia.ipynb": notebook(
                *TESTS, "assert False", kernel={"display_name": "j", "language": "julia", "name": "j"}
            ),
            "10_bare.ipynb": notebook(*TESTS, figure=False),
            "_hidden.ipynb": notebook("assert False"),
            "11_broken.ipynb": "{ not a notebook",
            "12_text.ipynb": notebook(
                "x = 1", outputs=[{"output_type": "stream", "name": "stdout", "text": ["hello"]}]
            ),
            "13_large.ipynb": notebook("x = 1", outputs=[{**FIGURE, "data": {"image/png": PNG + "A" * 300_000}}]),
            "14_export.ipynb": notebook("x = 1", "assert False\nimport nbdev; nbdev.nbdev_export()"),
            "15_mistyped.ipynb": notebook("x = (", *TESTS),
            "sub/16_deeper.ipynb": notebook("assert False"),
            "17_writes.ipynb": notebook("from pathlib import Path\nPath('../toy/new.py').write_text('x = 1')"),
            "18_tagged.ipynb": tagged,
        },
        flags="slow",
    )
    result = drive(folder, "--only", "notebooks")
    assert not (folder / "toy" / "new.py").exists()  # it ran on a copy
    return result


def test_driver_fails_and_counts(faulty):
    status, output, passed, failed, repeated = faulty
    assert status == 1
    assert "nbs/01_good.ipynb::runs" in passed and "nbs/01_good.ipynb::proves" in passed
    for line in failed.splitlines():  # every failure stands again at the end
        assert line.split("  ")[0] in repeated


@pytest.mark.parametrize(
    "name, says",
    [
        ("02_fails", "cell 3: ZeroDivisionError: division by zero"),
        ("03_skipped", "cell 2: ValueError"),  # it is not skipped here
        ("04_exits", "cell 7: SystemExit"),
        ("05_gone", "cell 7: its process ended, so not every cell was run"),
        ("07_unrun", "cell 8: AssertionError"),
        ("08_flagged", "cell 2: AssertionError"),
        ("09_julia", "cell 7: AssertionError"),
        ("11_broken", "is no notebook"),
        ("14_export", "cell 3: AssertionError"),
        ("15_mistyped", "cell 2: SyntaxError"),
        ("17_writes", "running it changes files of the project"),
        ("18_tagged", "cell 7 not executed"),
    ],
)
def test_driver_names_a_notebook_that_does_not_run_through(faulty, name, says):
    _, _, _, failed, repeated = faulty
    assert f"nbs/{name}.ipynb::runs" in failed
    assert re.search(rf"nbs/{name}\.ipynb::runs: .*{re.escape(says)}", repeated), repeated


@pytest.mark.parametrize(
    "name, says",
    [
        ("_hidden", "nbdev_test does not find it"),
        ("sub/16_deeper", "nbdev_test does not find it"),
        ("03_skipped", "cell 2: eval: false"),
        ("04_exits", "cell 7: ends early with sys.exit()"),
        ("05_gone", "cell 7: ends early with os._exit()"),
        ("06_untested", "0 tests"),
        ("07_unrun", "cell 2: skip_exec"),
        ("08_flagged", "cell 2: `#| slow` is in tst_flags"),
        ("09_julia", "the kernel's language is not python"),
        ("10_bare", "no figure"),
        ("12_text", "cell 2: saved output is stream"),
        ("13_large", "301 KB"),
        ("14_export", "cell 3: nbdev_test leaves out a cell that calls nbdev_export()"),
    ],
)
def test_driver_names_what_proves_nothing(faulty, name, says):
    _, _, _, failed, repeated = faulty
    assert f"nbs/{name}.ipynb::proves" in failed
    section = repeated[repeated.index(f"nbs/{name}.ipynb::proves: ") :]
    assert says in re.split(r"\n  (?=\S)", section)[0]


def test_driver_names_the_file_that_a_notebook_changes(faulty):
    assert "toy/new.py: new" in faulty[1]


def test_driver_stops_a_notebook_that_hangs(tmp_path):
    pid_file = tmp_path / "pid"
    hang = (
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '3600'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(3600)"
    )
    folder = project(tmp_path / "p", {"01_hangs.ipynb": notebook(*TESTS, hang)})
    _, _, _, failed, repeated = drive(folder, "--only", "notebooks", "--timeout", "5")
    assert "nbs/01_hangs.ipynb::runs" in failed
    assert "nbs/01_hangs.ipynb::runs: did not end within 5 s and was stopped, in cell 7" in repeated
    if pid_file.exists():  # a slow machine may not get that far in 5 s; what a notebook started goes with it
        alive = subprocess.run(
            ["ps", "-o", "stat=", "-p", pid_file.read_text()], capture_output=True, text=True
        ).stdout.strip()
        assert not alive or alive.startswith("Z")  # gone, or dead and not yet collected


def test_driver_fails_where_there_is_nothing_to_test(tmp_path):
    _, _, _, failed, _ = drive(project(tmp_path / "p"), "--only", "notebooks")
    assert failed == "pytest finds tests"
    _, _, passed, failed, _ = drive(tmp_path / "p", "--only", "pytest")
    assert not passed and failed == "pytest finds tests"


def test_driver_fails_where_nothing_matches(tmp_path):
    folder = project(
        tmp_path / "p", {"_01_a.ipynb": notebook(*TESTS), "sub/02_b.ipynb": notebook(*TESTS)}, recursive=True
    )
    write(folder / "nbs" / "sub" / ".notest", "")
    _, output, _, failed, _ = drive(folder, "--only", "notebooks")
    for name in ("_01_a", "sub/02_b"):
        assert f"nbs/{name}.ipynb::proves" in failed
        assert f"nbs/{name}.ipynb::proves: nbdev_test does not find it" in output


def test_driver_needs_a_project(tmp_path):
    done = subprocess.run([sys.executable, str(DRIVER), "--root", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and "has no settings.ini" in done.stderr


def test_driver_counts_every_pytest_test(tmp_path):
    tests = {
        "test_a.py": """
import os, time, pytest
def test_good(): assert True
def test_bad(): assert 1 == 2, "one is not two"
def test_skipped(): pytest.skip("no reason")
@pytest.mark.xfail(reason="later")
def test_expected(): assert False
def test_hangs(): time.sleep(3600)
def test_gone(): os._exit(0)
@pytest.fixture
def broken():
    yield
    raise RuntimeError("no way down")
def test_teardown(broken): pass
@pytest.mark.slow
def test_slow(): assert False
@pytest.mark.parametrize("n", [1, 2])
def test_after(n): assert n
""",
        "test_b.py": "import a_module_that_is_not_there\ndef test_never(): pass\n",
        "test_c.py": "def test_last(): pass\n",
    }
    folder = project(tmp_path / "p", tests=tests)
    write(folder / "pytest.ini", "[pytest]\nmarkers = slow: slow\n")
    _, output, passed, failed, repeated = drive(folder, "--only", "pytest", "--timeout", "4")
    names = [f"tests/test_a.py::test_{name}" for name in ("good", "after[1]", "after[2]")] + [
        "tests/test_c.py::test_last"
    ]
    assert sorted(passed.splitlines()) == sorted(names)
    for name, says in {
        "test_a.py::test_bad": "one is not two",
        "test_a.py::test_skipped": "skipped, so it proves nothing",
        "test_a.py::test_expected": "skipped, so it proves nothing",
        "test_a.py::test_hangs": "did not end within 4 s and was stopped",
        "test_a.py::test_gone": "its process ended",
        "test_a.py::test_teardown": "no way down",
        "test_b.py (collecting)": "a_module_that_is_not_there",
    }.items():
        assert f"tests/{name}" in failed
        assert re.search(rf"tests/{re.escape(name)}: .*{re.escape(says)}", repeated), repeated
    assert "not run here: 1 tests" in output


MODULE = ["#| default_exp part", '#| export\ndef double(x):\n    "Twice `x`."\n    return 2 * x', *TESTS]
INDEX = notebook("#| hide\nimport toy", "from toy.part import double\ndouble(1)")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    "A project without a fault, in a folder with an odd name, brought up to date by the steps of `make sync`."
    folder = project(
        tmp_path_factory.mktemp("sound") / ODD,
        {"01_part.ipynb": notebook(*MODULE), "index.ipynb": INDEX},
        {"test_part.py": "from toy.part import double\ndef test_double(): assert double(2) == 4\n"},
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import sync\nfor s in sync.STEPS: sync.run_step(s, sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, str(DRIVER.parent), str(folder)], check=True)
    return folder


def test_driver_passes_a_sound_project_anywhere(sound):
    "Also: a home folder that cannot be written, no display, no network, an odd folder name, IN_TEST left set."
    nowhere = "http://127.0.0.1:9"
    status, output, passed, failed, _ = drive(
        sound,
        jobs="2",
        HOME="/dev/null/home",
        DISPLAY="",
        LANG="C",
        LC_ALL="C",
        http_proxy=nowhere,
        https_proxy=nowhere,
        IN_TEST="1",
    )
    assert status == 0 and not failed, output
    assert "nbs/01_part.ipynb::runs" in passed and "nbs/index.ipynb::proves" in passed
    assert "tests/test_part.py::test_double" in passed
    for step in ("nbdev_export", "nbdev_clean", "README.md"):
        assert f"{step} changes nothing" in passed
    assert not (sound / "tests" / "__pycache__").exists()


def test_driver_names_files_that_are_out_of_date(sound, tmp_path):
    folder = tmp_path / "p"
    subprocess.run(["cp", "-r", str(sound), str(folder)], check=True)
    module = folder / "toy" / "part.py"
    write(module, module.read_text(encoding="utf-8").replace("2 * x", "x + x"))
    write(folder / "toy" / "stale.py", module.read_text(encoding="utf-8"))
    write(folder / "README.md", "something else\n")
    unclean = notebook(*MODULE)
    unclean["cells"][2]["execution_count"] = 7
    write(folder / "nbs" / "01_part.ipynb", unclean)
    _, output, passed, failed, repeated = drive(folder, "--only", "sync")
    assert passed == "promises.md changes nothing" and "run `make sync`" in repeated  # it has no such page
    assert "toy/part.py: out of date" in output
    assert "toy/stale.py: no notebook makes this file" in output
    assert "nbs/01_part.ipynb: out of date" in output
    assert "README.md: out of date" in output
    assert "x + x" in module.read_text(encoding="utf-8")  # tried on a copy: the tree is as it was


def test_sync_leaves_out_what_git_ignores(tmp_path):
    sys.path.insert(0, str(DRIVER.parent))
    try:
        import project as files_of
    finally:
        sys.path.pop(0)
    write(tmp_path / ".gitignore", "out/\n.venv*/\n")
    for name in ("a b.txt", "ü.py", "out/x", ".venv-test/y", "sub/z"):
        write(tmp_path / name, "")
    plain = files_of.files(tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert {str(name) for name in files_of.files(tmp_path)} == {".gitignore", "a b.txt", "ü.py", "sub/z"}
    assert plain == files_of.files(tmp_path)  # the same without git


def test_driver_runs_only_what_is_named(sound):
    _, output, passed, failed, _ = drive(sound, "tests/test_part.py")
    assert (passed, failed) == ("tests/test_part.py::test_double", ""), output
