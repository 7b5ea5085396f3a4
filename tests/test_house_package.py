"""The package as others get it: wheel, source archive, imports without side effects, every supported Python."""

import ast
import configparser
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from processes import patient

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import project  # noqa: E402

ODD = "two words; ünïcode"
SETTINGS = configparser.ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
FACTS = SETTINGS["DEFAULT"]


def clean_environment(**more):
    "Without the variables by which the tests see the source tree."
    return {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")},
        "PYTHONNOUSERSITE": "1",
        **more,
    }


def copy_of_the_project(folder):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import project; project.copy(project.ROOT, sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(ROOT / "tools"), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    "Source archive, and the wheel that is built from it: what the archive lacks, the wheel cannot have."
    folder = tmp_path_factory.mktemp("build") / ODD
    copy_of_the_project(folder)
    (folder / "out").mkdir()
    (folder / "out" / "junk.txt").write_text("of a run")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder.parent / "dist"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next((folder.parent / "dist").glob("*.tar.gz")), next((folder.parent / "dist").glob("*.whl"))


def test_built_with_a_current_setuptools():
    from importlib.metadata import version

    assert int(version("setuptools").split(".")[0]) >= 77  # older ones do not know the form of our licence


def test_source_archive_can_be_built_and_tested(archives):
    names = {name.partition("/")[2] for name in tarfile.open(archives[0]).getnames()}
    for name in (
        "settings.ini",
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "Makefile",
        "lesa_nb/py.typed",
        "tools/test.py",
    ):
        assert name in names, name
    notebooks = {str(path.relative_to(ROOT)) for path in project.notebooks(ROOT)}
    assert notebooks and notebooks <= names
    # what needs a clone, its history or the pinned versions, stays out with its test
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    assert tests - names == {"tests/test_lock.py"} and not any(name.startswith("requirements") for name in names)
    junk = [
        name
        for name in names
        if re.search(r"(^|/)(out|\.venv[^/]*|__pycache__|\.git|\.ipynb_checkpoints)(/|$)|\.pyc$", name)
    ]
    assert junk == []


def test_wheel_holds_the_package_and_nothing_else(archives):
    names = zipfile.ZipFile(archives[1]).namelist()
    strange = [
        name
        for name in names
        if not re.match(
            r"lesa_nb/[\w/]+\.py$|lesa_nb/_course/[\w/]+\.ipynb$|lesa_nb/py\.typed$|lesa_nb/look/explorer\.html$"
            r"|lesa_nb-[\d.]+\.dist-info/",
            name,
        )
    ]
    assert strange == []
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lesa_nb").rglob("*.py")}
    assert modules and modules <= set(names)
    assert "lesa_nb/py.typed" in names and "lesa_nb/look/explorer.html" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def figures(text):
    "How many outputs a notebook's file holds."
    return sum(len(cell.get("outputs", [])) for cell in json.loads(text)["cells"])


def test_the_wheel_holds_the_course(archives):
    "Every page with its code as it is here, in its part, without figures; a clone has no such folder."
    wheel = zipfile.ZipFile(archives[1])
    pages = {path.relative_to(ROOT / "nbs").as_posix(): path for path in project.notebooks(ROOT)}
    made = {name for name in wheel.namelist() if name.startswith("lesa_nb/_course/")}
    assert made == {f"lesa_nb/_course/{name}" for name in pages} and "lesa_nb/_course/index.ipynb" in made
    for name, path in pages.items():
        text = wheel.read(f"lesa_nb/_course/{name}").decode()
        here, there = (json.loads(t)["cells"] for t in (path.read_text(encoding="utf-8"), text))
        assert [cell["source"] for cell in there] == [cell["source"] for cell in here] and figures(text) == 0, name
    assert not any(name.parts[:2] == ("lesa_nb", "_course") for name in project.files(ROOT))


@pytest.fixture(scope="module")
def unpacked(archives, tmp_path_factory):
    "The source archive as somebody unpacks it."
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder)
    return next(folder.iterdir())


def test_the_source_archive_has_no_figures(unpacked):
    "Only the contents page keeps what README shows. The files of the project stay as they were."
    source = unpacked
    assert not project.has_figures(source) and project.has_figures(ROOT)
    pages = project.notebooks(source)
    assert len(pages) == len(project.notebooks(ROOT))
    left = {page.name for page in pages if figures(page.read_text(encoding="utf-8"))}
    here = {path.name for path in project.notebooks(ROOT) if figures(path.read_text(encoding="utf-8"))}
    assert left <= {"index.ipynb"} and len(here) > 30


@pytest.mark.slow
def test_the_source_archive_is_judged_without_figures(unpacked):
    "What the tests ask of saved figures is asked of a clone only; `make notebooks` draws them in an archive, too."
    script = (
        "import sys; sys.path.append('tools'); import pytest;"
        "sys.exit(pytest.main(['-p', 'proof', '-p', 'no:cacheprovider', '-q', 'nbs', '-k', 'proves']))"
    )
    for command in (["-c", script], ["tools/check_house.py", "--rule", "budget"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=unpacked, capture_output=True, text=True, env=clean_environment()
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_metadata_of_the_wheel(archives):
    wheel = zipfile.ZipFile(archives[1])
    info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")).rpartition("/")[0]
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["Name"] == "lesa_nb" and metadata["Version"] == FACTS["version"]
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    extras = {"demo", "export", "coco", "train", "hub", "timm", "dev", "browser", "site"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    needed = metadata.get_all("Requires-Dist")
    runtime = {re.match(r"[\w-]+", line)[0].lower() for line in needed if "extra ==" not in line}
    assert "torch>=2.10" in [line.replace(" ", "") for line in needed]
    assert {"torch", "torchvision", "numpy"} <= runtime
    assert not runtime & {
        "nbdev",
        "fastcore",
        "execnb",
        "jupyterlab",
        "ipykernel",
        "nbconvert",
        "pytest",
        "scikit-learn",
    }
    assert "lesa = lesa_nb.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    "The wheel in an environment of its own, which finds torch and the like where the tests have them."
    venv = tmp_path_factory.mktemp("installed") / ODD / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install"]
    done = subprocess.run(
        [*pip, "--no-deps", "--no-index", str(archives[1])], capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == 0, done.stderr
    site = next(venv.glob("lib/python*/site-packages"))
    import torch

    (site / "borrowed.pth").write_text(f"{Path(torch.__file__).parent.parent}\n", encoding="utf-8")
    return python


# What `import` may not bring in: it takes time, needs a display or a network, or is for authors only.
HEAVY = (
    "matplotlib",
    "pycocotools",
    "sklearn",
    "skimage",
    "pandas",
    "IPython",
    "nbdev",
    "fastcore",
    "execnb",
    "jupyterlab",
    "pytest",
    "timm",
    "huggingface_hub",
)
IMPORTS = """
import importlib, json, sys
refused = []
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request"):
        refused.append(f"{event} {args[1:]}")
        raise OSError("no network in this test")
sys.addaudithook(watch)
found = {}
for name in sys.argv[2:]:
    before = set(sys.modules)
    module = importlib.import_module(name)
    new = {m.partition(".")[0] for m in set(sys.modules) - before}
    found[name] = sorted(new & set(json.loads(sys.argv[1])))
print(json.dumps({"found": found, "refused": refused, "file": sys.modules["lesa_nb"].__file__}))
"""


def imported(python, names, cwd, **variables):
    done = subprocess.run(
        [str(python), "-I", "-c", IMPORTS, json.dumps(HEAVY), *names],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=clean_environment(**variables),
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning either
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_brings_in_no_plotting_no_network(installed, tmp_path):
    "From the installed wheel; no display, and a home folder that cannot be written."
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "lesa_nb").rglob("*.py")
        if not path.stem.startswith("_")
    )
    modules.remove("lesa_nb.look.figures")  # the one that draws
    seen = imported(
        installed, ["lesa_nb", "lesa_nb.layers.lesa", *modules], tmp_path, HOME="/dev/null/home", DISPLAY=""
    )
    assert str(installed.parent.parent) in seen["file"]  # the wheel, not the source tree
    assert seen["refused"] == []
    assert {name: heavy for name, heavy in seen["found"].items() if heavy} == {}


def test_drawing_works_without_display_and_home(installed, tmp_path):
    code = (
        "from lesa_nb.look.figures import draw_map; draw_map(); import matplotlib.pyplot as plt; plt.savefig('map.png')"
    )
    env = clean_environment(HOME="/dev/null/home", DISPLAY="", TMPDIR=str(tmp_path))
    env.pop("MPLBACKEND", None)
    env.pop("MPLCONFIGDIR", None)
    done = subprocess.run(
        [str(installed), "-I", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_the_command_is_installed(installed, tmp_path):
    done = subprocess.run(
        [str(installed.with_name("lesa")), "--help"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    for command in ("demo", "check", "explain"):
        assert command in done.stdout


def test_the_command_finds_the_course_in_the_wheel(installed, tmp_path):
    "`lesa exercise` works after `pip install`, far from any clone."
    program = str(installed.with_name("lesa"))
    options = dict(cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=200)
    listed = subprocess.run([program, "exercise"], **options)
    pages = re.findall(r"(?m)^\d\d  .+ to write\)$", listed.stdout)
    assert listed.returncode == 0 and len(pages) > 20, listed.stdout + listed.stderr
    written = subprocess.run([program, "exercise", "04"], **options)
    assert written.returncode == 0 and (tmp_path / "04_position_exercise.ipynb").stat().st_size > 5000, written.stderr


def python_sources():
    for folder in ("lesa_nb", "tests", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    yield "setup.py", (ROOT / "setup.py").read_text(encoding="utf-8")
    for path in project.notebooks(ROOT):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], 1):
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and not re.search(r"^\s*[%!]", source, re.MULTILINE):
                yield f"{path.relative_to(ROOT)}, cell {number}", source


def test_syntax_of_the_oldest_python():
    oldest = tuple(int(n) for n in FACTS["min_python"].split("."))
    sources = list(python_sources())
    assert len(sources) > 20
    for name, source in sources:
        ast.parse(source, name, feature_version=oldest)
    ast.parse(
        (ROOT / "tools" / "in_env.py").read_text(encoding="utf-8"), feature_version=(3, 6)
    )  # to say that it is too old


def test_every_python_that_is_here_compiles_every_file():
    "Not only the grammar: each interpreter reads the files itself, without the packages."
    code = (
        "import pathlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    compile(pathlib.Path(name).read_text(encoding='utf-8'), name, 'exec')\n"
        "print(len(sys.argv) - 1)"
    )
    files = [str(path) for folder in ("lesa_nb", "tools", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    tried = 0
    for name in ("python3.10", "python3.11", "python3.12", "python3.13"):
        if not (path := shutil.which(name)):
            continue
        done = subprocess.run([path, "-c", code, *files], capture_output=True, text=True, env=clean_environment())
        if done.returncode == 127 or "command not found" in done.stderr:  # a shim without its Python
            continue
        assert done.stdout.strip() == str(len(files)), (name, done.stderr)
        tried += 1
    assert tried > 0 or sys.version_info[:2] not in ((3, 10), (3, 11), (3, 12), (3, 13))


def test_importing_the_package_brings_in_nothing_but_itself():
    "Counted in modules, not in seconds, which depend on the machine; without torch it takes some milliseconds."
    code = (
        "import sys; before = set(sys.modules); import lesa_nb; new = set(sys.modules) - before;"
        "print(len(new), *sorted({name.partition('.')[0] for name in new} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, env=clean_environment()
    )
    number, *packages = done.stdout.split()
    assert packages == ["lesa_nb"] and int(number) < 60, done.stdout + done.stderr


def test_archives_are_small(archives):
    "Notebooks without their figures, which would be nine tenths of them."
    source, wheel = (path.stat().st_size for path in archives)
    assert wheel < 2_000_000 and source < 2_000_000, (source, wheel)


def test_no_shell_and_no_text_run_as_code():
    """What SECURITY.md says of the package: no os.system, no shell=True, no eval or exec, torch.load of tensors only.

    `lesa exercise --check` alone runs text: the cells of the notebook that it is given, in a process of its own.
    """
    found, allowed = [], {("lesa_nb/study/judge.py", "exec")}
    for path in sorted((ROOT / "lesa_nb").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            shell = name in ("eval", "exec", "os.system", "os.popen") or words.get("shell") == "True"
            if (str(path.relative_to(ROOT)), name) in allowed:
                continue
            if shell or (name == "torch.load" and words.get("weights_only") != "True"):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert found == []


def test_versions_agree():
    source = (ROOT / "lesa_nb" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{FACTS["version"]}"' in source
    assert FACTS["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# Slow: really fresh environments, with their own torch


def other_pythons():
    "This Python, and the oldest and newest supported ones that this machine has."
    found = [sys.executable]
    for name in ("python3.10", "python3.13"):
        path = shutil.which(name)
        try:
            if path and subprocess.run([path, "-c", "import ensurepip"], capture_output=True).returncode == 0:
                found.append(path)
        except OSError:
            pass
    return found


@pytest.mark.slow
def test_fresh_environments(archives, tmp_path):
    "Newest setuptools (built apart), own torch: from the source archive, and as `make demo` installs."
    source = copy_of_the_project(tmp_path / ODD)
    for number, python in enumerate(other_pythons()):
        venv = tmp_path / f"{ODD} {number}"
        subprocess.run([python, "-m", "venv", str(venv)], check=True)
        inside = venv / "bin" / "python"
        what = f"lesa_nb[demo] @ {archives[0].as_uri()}" if number else ".[demo]"
        pip = [str(inside), "-m", "pip", "install", "-q", what]
        done = subprocess.run(pip, cwd=source, capture_output=True, text=True, env=clean_environment())
        assert done.returncode == 0, done.stderr[-3000:]
        code = (
            "import torch, lesa_nb, sklearn; from lesa_nb.layers.lesa import LESA;"
            "print(LESA(16, 16, 4)(torch.randn(1, 16, 4, 4)).shape == (1, 16, 4, 4), lesa_nb.__file__)"
        )
        done = subprocess.run(
            [str(inside), "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, env=clean_environment()
        )
        assert done.stdout.startswith("True") and str(venv) in done.stdout, done.stdout + done.stderr
        done = subprocess.run(
            [str(venv / "bin" / "lesa"), "check"], cwd=tmp_path, capture_output=True, text=True, env=clean_environment()
        )
        assert done.returncode == 0, done.stdout + done.stderr
        shutil.rmtree(venv)


@pytest.mark.slow
def test_plain_nbdev_test_leaves_the_tree_as_it_was(tmp_path):
    "Within 8 minutes on two cores, without a word about threads."
    folder = copy_of_the_project(tmp_path / ODD)
    env = {k: v for k, v in clean_environment().items() if k != "OMP_NUM_THREADS" and not k.startswith("GIT_")}
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=folder, env=env, check=True)
    begin = time.monotonic()
    program = str(Path(sys.executable).with_name("nbdev_test"))
    done = subprocess.run([program], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert time.monotonic() - begin < patient(480)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=folder, env=env, capture_output=True, text=True)
    assert status.stdout == ""
