"""Environments, README, hooks and the CI script: what stands around the tests."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ODD = "two words; ünïcode"


def load(script):
    "A file of tools/ as a module."
    spec = importlib.util.spec_from_file_location(f"tool_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# tools/in_env.py: here with copies of it in small projects, where nothing can be installed


@pytest.fixture
def small(tmp_path):
    "A project folder with an odd name that holds the script, and an environment in it that counts as up to date."
    folder = tmp_path / ODD
    (folder / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "in_env.py", folder / "tools")
    (folder / "settings.ini").write_text("[DEFAULT]\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True)
    site = next((folder / ".venv" / "lib").glob("python*/site-packages"))
    (site / "lesa_nb.py").write_text("")
    (folder / ".venv" / "lesa_nb.stamp").write_text("dev\n")
    return folder


def in_env(folder, *arguments, python=sys.executable):
    command = [python, str(folder / "tools" / "in_env.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=100)


SHOW = ["--", "python", "-c", "import sys; print(sys.prefix)"]


def test_an_environment_up_to_date_is_used_as_it_is(small):
    done = in_env(small, ".venv", "dev", *SHOW)
    assert (done.returncode, done.stdout.strip()) == (0, str(small / ".venv")), done.stderr
    done = in_env(small, "--or", ".venv", ".venv-demo", "demo", *SHOW)  # [dev] brings what [demo] needs
    assert (done.returncode, done.stdout.strip()) == (0, str(small / ".venv")), done.stderr
    assert not (small / ".venv-demo").exists()


def test_an_environment_with_less_in_it_is_added_to(small):
    "[browser] is [dev] and more: gigabytes are not installed twice, and afterwards it serves both."
    venv = small / ".venv"
    (venv / "old").write_text("")
    done = in_env(small, ".venv", "browser", *SHOW)
    assert "adding to the environment .venv" in done.stdout and "pip install -e .[dev,browser]" in done.stdout
    assert done.returncode == 1 and (venv / "old").exists()  # nothing can be installed here; what was there is there
    script = load(small / "tools" / "in_env.py")
    assert script.is_ready(str(venv), "dev") and not script.is_ready(str(venv), "browser")
    (venv / script.STAMP).write_text("browser\n")
    assert all(script.is_ready(str(venv), extra) for extra in ("browser", "dev", "demo"))
    assert not script.sources_changed(str(venv), "browser")


@pytest.mark.parametrize("why", ["settings are newer", "interrupted", "another extra", "package gone", "python gone"])
def test_an_environment_out_of_date_is_noticed(small, why):
    script = load(small / "tools" / "in_env.py")
    venv = small / ".venv"
    assert script.is_ready(str(venv), "dev") and script.is_ready(str(venv), "demo")
    if why == "settings are newer":
        later = time.time() + 5
        os.utime(small / "settings.ini", (later, later))
    elif why == "interrupted":
        (venv / script.STAMP).write_text("making\n")
    elif why == "another extra":
        (venv / script.STAMP).write_text("demo\n")
        assert script.is_ready(str(venv), "demo")
    elif why == "package gone":
        next(venv.glob("lib/*/site-packages/lesa_nb.py")).unlink()
    else:
        (venv / "bin" / "python").unlink()
    assert not script.is_ready(str(venv), "dev")


def test_an_environment_out_of_date_is_made_again(small):
    stamp = small / ".venv" / "lesa_nb.stamp"
    stamp.write_text("making\n")
    (small / ".venv" / "old").write_text("")
    done = in_env(small, ".venv", "dev", *SHOW)
    assert "making the environment .venv" in done.stdout
    assert not (small / ".venv" / "old").exists()
    assert (
        done.returncode == 1 and "pip could not install lesa_nb" in done.stderr
    )  # there is no project to install here
    assert "Traceback" not in done.stderr
    assert stamp.read_text() == "making\n"  # and so the next run starts again


def test_an_environment_that_is_active_is_made_again_from_outside(small):
    "`source .venv/bin/activate`, then settings.ini changes: the Python that runs the script goes with its folder."
    (small / ".venv" / "lesa_nb.stamp").write_text("making\n")
    (small / ".venv" / "old").write_text("")
    done = in_env(small, ".venv", "dev", python=str(small / ".venv" / "bin" / "python"))
    assert "pip could not install lesa_nb" in done.stderr and "Traceback" not in done.stderr
    assert (small / ".venv" / "bin" / "python").exists() and not (small / ".venv" / "old").exists()


def test_an_active_environment_without_a_python_outside_is_left_alone(small):
    script = small / "tools" / "in_env.py"
    script.write_text(script.read_text().replace('"python%d.%d"', '"nothing%d.%d"'))
    (small / ".venv" / "lesa_nb.stamp").write_text("making\n")
    done = in_env(small, ".venv", "dev", python=str(small / ".venv" / "bin" / "python"))
    assert done.returncode == 1 and "deactivate it" in done.stderr and (small / ".venv" / "bin" / "python").exists()


def test_a_folder_that_is_no_environment_is_left_alone(small):
    (small / "mine").mkdir()
    (small / "mine" / "letter.txt").write_text("dear")
    done = in_env(small, "mine", "dev")
    assert done.returncode == 1 and "not a virtual environment" in done.stderr
    assert (small / "mine" / "letter.txt").read_text() == "dear"


def test_an_environment_made_by_hand_is_not_emptied(small):
    (small / ".venv" / "lesa_nb.stamp").unlink()
    (small / ".venv" / "mine").write_text("dear")
    done = in_env(small, ".venv", "dev")
    assert "made by hand" in done.stdout and done.returncode == 1  # without pip nothing can be added
    assert (small / ".venv" / "mine").read_text() == "dear"


def test_an_old_python_is_told_so(small):
    script = small / "tools" / "in_env.py"
    script.write_text(script.read_text().replace("OLDEST, NEWEST_TRIED = (3, 10)", "OLDEST, NEWEST_TRIED = (9, 9)"))
    done = in_env(small, ".venv", "dev")
    assert done.returncode == 1 and "needs Python 9.9 or newer" in done.stderr and "PYTHON=" in done.stderr


# README


def test_readme_is_made_from_the_index(tmp_path):
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
    figure = {"output_type": "display_data", "metadata": {}, "data": {"image/png": png}}
    text = {"output_type": "stream", "name": "stdout", "text": ["0.123 s\n"]}

    def code(source, *outputs):
        return {
            "cell_type": "code",
            "metadata": {},
            "execution_count": None,
            "source": source,
            "outputs": list(outputs),
        }

    def words(source):
        return {"cell_type": "markdown", "metadata": {}, "source": source}

    cells = [
        words(
            '# lesa\n> One picture\n\n![map](../Images/map.png) <img src="../Images/b.png">\n'
            "[next](01_a.ipynb) [web](https://x.org/a) [here](#b)"
        ),
        code("#| hide\nimport secret", text),
        code("#| echo: true\nfrom lesa_nb.layers.lesa import LESA\nLESA(8, 8, 4)", text, figure),
        words("```\n[left](alone)\n```\n\n\n\n| a | b |\n|---|---|\n| 1 | 2 |"),
    ]
    (tmp_path / "nbs").mkdir()
    index = tmp_path / "nbs" / "index.ipynb"
    index.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    (tmp_path / "Images").mkdir()
    (tmp_path / "Images" / "readme-9.png").write_bytes(b"of a cell that is gone")
    main, made = load(ROOT / "tools" / "readme.py").main, []
    for _ in range(2):
        main(tmp_path)
        made.append((tmp_path / "README.md").read_bytes())
    assert made[0] == made[1]
    readme = made[0].decode()
    for part in (
        "![map](Images/map.png)",
        'src="Images/b.png"',
        "[next](nbs/01_a.ipynb)",
        "[web](https://x.org/a)",
        "[here](#b)",
        "```python\nfrom lesa_nb.layers.lesa import LESA\nLESA(8, 8, 4)\n```",
        "![](Images/readme-1.png)",
        "[left](alone)",
        "| 1 | 2 |",
    ):
        assert part in readme, f"{part}\n--- not in ---\n{readme}"
    for part in ("secret", "0.123", "echo", "data:", "\n\n\n"):
        assert part not in readme, part
    assert [p.name for p in sorted((tmp_path / "Images").iterdir())] == ["readme-1.png"]

    cells[0]["attachments"] = {"a.png": {"image/png": png}}
    index.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    with pytest.raises(SystemExit, match="pasted"):
        main(tmp_path)


# git


def test_hooks_merge_notebooks_and_guard_commits(tmp_path):
    clone = tmp_path / ODD
    shutil.copytree(ROOT / "tools", clone / "tools", ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / ".gitattributes", clone)
    (clone / "nbs").mkdir()
    (clone / "toy").mkdir()
    (clone / "toy" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8").replace("lesa_nb", "toy")
    (clone / "settings.ini").write_text(settings.replace("version = 0.1.0", "version = 0.0.1"), encoding="utf-8")
    (clone / ".gitignore").write_text("__pycache__/\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env.update(
        HOME=str(tmp_path),
        GIT_CONFIG_NOSYSTEM="1",
        GIT_AUTHOR_NAME="a",
        GIT_AUTHOR_EMAIL="a@b",
        GIT_COMMITTER_NAME="a",
        GIT_COMMITTER_EMAIL="a@b",
    )

    def git(*arguments, ok=True):
        done = subprocess.run(["git", *arguments], cwd=clone, env=env, capture_output=True, text=True)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    def write(first, output, clean=True):
        cells = [
            {
                "cell_type": "code",
                "execution_count": None if clean else 3,
                "id": f"c{i}",
                "metadata": {},
                "outputs": [],
                "source": [source],
            }
            for i, source in enumerate([first, "b = 2", "c = 3"])
        ]
        cells[2]["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": {"image/png": output}}]
        nb = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (clone / "nbs" / "index.ipynb").write_text(json.dumps(nb, indent=1, sort_keys=True) + "\n")

    def hooks(ok=True):
        done = subprocess.run([sys.executable, "tools/hooks.py"], cwd=clone, env=env, capture_output=True, text=True)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "no git clone" in hooks(ok=False)
    git("init", "-q", "-b", "main")
    hooks()
    hooks()  # twice does no harm
    write("a = 1", "AAAA")
    subprocess.run([sys.executable, "tools/sync.py"], cwd=clone, env=env, check=True, capture_output=True)
    git("add", "-A")
    git("commit", "-q", "--no-verify", "-m", "start")

    write("a = 1", "AAAA", clean=False)  # a notebook saved without cleaning
    git("add", "-A")
    assert "nbs/index.ipynb: out of date" in git("commit", "-m", "unclean", ok=False)

    git("checkout", "-q", "-f", "-b", "other", "main")
    write("a = 10", "BBBB")
    git("commit", "-q", "--no-verify", "-a", "-m", "other")
    git("checkout", "-q", "main")
    write("a = 1", "CCCC")
    git("commit", "-q", "--no-verify", "-a", "-m", "mine")
    git("merge", "--no-verify", "other")  # both changed the same picture: by line this is a conflict
    merged = json.loads((clone / "nbs" / "index.ipynb").read_text())
    assert ["".join(c["source"]) for c in merged["cells"]] == ["a = 10", "b = 2", "c = 3"]

    (clone / ".git" / "hooks" / "pre-commit").write_text("#!/bin/sh\n# my own\n")
    assert "exists already" in hooks(ok=False)


# CI


@pytest.mark.parametrize(
    "recipe, status, last",
    [
        ("@echo; echo '12 passed, 0 failed'", 0, "12 passed, 0 failed"),
        ("@echo; echo '9 passed, 3 failed'; exit 1", 2, "9 passed, 3 failed"),
        ("@echo pip broke >&2; exit 1", 1, "0 passed, 1 failed"),
    ],
    ids=["passed", "failed", "broken"],
)
def test_ci_ends_with_the_closing_line(tmp_path, recipe, status, last):
    folder = tmp_path / ODD
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
    (folder / "Makefile").write_text(f"test:\n\t{recipe}\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        [str(folder / ".ci" / "run")], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (status, last), done.stdout
    assert done.stdout.splitlines().count(last) == 1


def test_ci_and_workflow_call_make_test():
    assert "\nmake test" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert "make test PYTHON" in workflow and "make test-browser" in workflow
    for version in ("3.10", "3.11", "3.12", "3.13"):
        assert f'"{version}"' in workflow
    site = (ROOT / ".github" / "workflows" / "site.yml").read_text()
    assert "make site PYTHON" in site and "path: out/site" in site and "actions/deploy-pages" in site


def test_make_lists_its_targets():
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True)
    for target in ("demo", "test", "test-all", "test-browser", "lab", "site", "notebooks", "sync", "dev", "hooks"):
        assert f"make {target} " in done.stdout, done.stdout + done.stderr
