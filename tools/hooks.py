"""Teach this clone's git about notebooks. Writes to .git only; run by `make hooks`.

* merge driver: two people's changes to a notebook are merged cell by cell (nbdev_merge)
* pre-commit hook: a commit is refused while package, notebooks and README do not agree (tools/sync.py --check)

Both use the nbdev of the environment that runs this script, the version that settings.ini asks for and CI tests with.
`nbdev_install_hooks` would use whatever nbdev is on the PATH, and would write to the home folder.
"""

import os
import subprocess
import sys
from pathlib import Path

import project

MARK = "# lesa_nb: installed by `make hooks`"


def git(*arguments):
    return subprocess.run(
        ["git", *arguments], cwd=project.ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def quoted(path):
    "A path as one word of a shell command."
    return "'" + str(path).replace("'", "'\\''") + "'"


def main():
    try:
        hook = project.ROOT / git("rev-parse", "--git-path", "hooks/pre-commit")
    except (OSError, subprocess.CalledProcessError):
        sys.exit("error: this folder is no git clone: there is nothing to hook into")
    if hook.exists() and MARK not in hook.read_text(encoding="utf-8", errors="replace"):
        sys.exit(f"error: {hook} exists already: move it away, or add `python tools/sync.py --check` to it")
    python = os.path.abspath(sys.executable)  # the environment's own, not what it links to
    driver = Path(python).with_name("nbdev_merge")
    git("config", "--local", "merge.nbdev-merge.name", "merge notebooks cell by cell with nbdev_merge")
    git("config", "--local", "merge.nbdev-merge.driver", f"{quoted(driver)} %O %A %B %P")
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{MARK}\nexec {quoted(python)} tools/sync.py --check\n", encoding="utf-8")
    hook.chmod(0o755)
    print("git merges notebooks cell by cell, and checks before each commit that `make sync` was run")


if __name__ == "__main__":
    main()
