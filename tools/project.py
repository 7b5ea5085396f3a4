"""Which files belong to the project, and a copy of them: for checks that must not touch the working tree."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("tools") / "results"  # what tools have measured, and others read

# Where there is no git (an unpacked archive), these are what .gitignore would have kept out.
_IGNORED_FOLDERS = {"out", "build", "dist", "__pycache__", "_docs", "_proc", "runs", "node_modules"}


def _is_ignored(folder):
    return (
        folder in _IGNORED_FOLDERS
        or folder.endswith(".egg-info")
        or (folder.startswith(".") and folder not in {".ci", ".github"})
    )


def files(root=ROOT):
    "Every file of the project, relative to `root`: what git tracks, and what it would."
    root = Path(root)
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            check=True,
        ).stdout
        names = [Path(name) for name in listing.decode("utf-8", "surrogateescape").split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = [path.relative_to(root) for path in root.rglob("*")]
        names = [name for name in names if not any(_is_ignored(folder) for folder in name.parts[:-1])]
    return sorted(name for name in set(names) if (root / name).is_file())


def notebooks(root=ROOT):
    "Every notebook in nbs/, in reading order; not the copies that an editor keeps in folders of its own."
    return [path for path in sorted(Path(root).glob("nbs/**/*.ipynb")) if ".ipynb_checkpoints" not in path.parts]


def has_figures(root=ROOT):
    "Whether notebooks hold what they drew: not in a source archive, which PKG-INFO tells (setup.py takes figures out)."
    return not (Path(root) / "PKG-INFO").exists()


def copy(root, to):
    "The project's files, copied to the folder `to`."
    for name in files(root):
        target = Path(to) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(root) / name, target)


def snapshot(folder):
    "Every file in `folder` with its bytes, but for Python's and Jupyter's own caches."
    caches = {"__pycache__", ".ipynb_checkpoints", ".git"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not caches & set(path.relative_to(folder).parts) and path.name != ".last_checked"
    }


def alternative_text(output):
    "What the picture of a notebook's output says to who does not see it, or nothing."
    said = output.get("metadata", {}).get("image/png", {})
    return "".join(said.get("alt", "")) if isinstance(said, dict) else ""
