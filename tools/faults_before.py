"""What the first version of the package answered where the list of faults says what is right: proof that a row bites.

    python tools/faults_before.py           # every row, each in a process of its own; written down
    python tools/faults_before.py C1 L2     # only these

The rows are in tests/faults_before/rows.py, in the names of that version, which git keeps. The page of promises shows
the answers beside the tests that hold the right ones today.
"""

import argparse
import datetime
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import project
import promises

BEFORE = "fffc1b5082269de49a41a6b13887b3bdd3a24070"
ROWS = Path("tests") / "faults_before" / "rows.py"
RESULTS = project.RESULTS / "faults_before.json"


def checkout(folder, root=project.ROOT):
    "That version's package, unpacked into `folder`."
    packed = subprocess.run(["git", "archive", BEFORE, "lesa_nb"], cwd=root, capture_output=True)
    if packed.returncode:
        reason = packed.stderr.decode(errors="replace").strip()
        sys.exit(f"error: git does not have {BEFORE[:7]} ({reason}): fetch the whole history (git fetch --unshallow)")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder)


def ask(row, package, timeout, root=project.ROOT):
    "What a row answers on the version in the folder `package`, or why it does not."
    drop = ("PYTHONPATH", "PYTHONHOME")
    env = {key: value for key, value in os.environ.items() if key not in drop}
    env |= dict(PYTHONPATH=str(package), MPLBACKEND="Agg", PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory(prefix="lesa-before-") as work:
        command = [sys.executable, "-W", "ignore", str(root / ROWS), row, work]
        try:
            done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return dict(why=f"took longer than {timeout} s")
    if done.returncode:
        return dict(why=(done.stderr.strip().splitlines() or ["no word"])[-1])
    said = done.stdout.splitlines()[-1]
    for place in (str(work), str(package)):
        said = said.replace(f"{place}/", "")
    return json.loads(said)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="default: all")
    parser.add_argument("--timeout", type=int, default=300, help="seconds that a row may take")
    parser.add_argument("--json", type=Path, default=project.ROOT / RESULTS, help="where the answers go")
    args = parser.parse_args()
    known = [name for name, _, _ in promises.faults()]
    if unknown := set(args.rows) - set(known):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    found = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    with tempfile.TemporaryDirectory(prefix="lesa-first-") as package:
        checkout(package)
        for row in args.rows or known:
            one = ask(row, package, args.timeout)
            versions = dict(torch=importlib.metadata.version("torch"), python=platform.python_version())
            found[row] = dict(one, date=f"{datetime.date.today()}", **versions)
            print(f"{row:>4}  {one.get('answer', 'not reproduced: ' + one.get('why', ''))}", flush=True)
            kept = {name: found[name] for name in known if name in found}
            args.json.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
