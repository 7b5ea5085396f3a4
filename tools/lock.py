"""Exact versions of the development environment, each with the hashes of its files; and what it consists of.

    python tools/lock.py           # make lock: write requirements/dev-python3.11-linux-x86_64.txt
    python tools/lock.py --sbom    # make sbom: write out/lesa_nb.cdx.json (CycloneDX) from that file

Both get their tool (uv, cyclonedx-bom) into an environment that goes when they end. What is pinned is what settings.ini
asks for to use and to develop the package.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON, PLATFORM = "3.11", "x86_64-manylinux_2_28"
LOCK = Path("requirements") / f"dev-python{PYTHON}-linux-x86_64.txt"
SBOM = Path("out") / "lesa_nb.cdx.json"
_HEAD = f"""# Written by `make lock`: the development environment for Python {PYTHON}, Linux x86-64, pinned with hashes.
#     python{PYTHON} -m venv .venv
#     .venv/bin/pip install --require-hashes -r {LOCK.as_posix()}
#     .venv/bin/pip install --no-deps --no-build-isolation -e .
"""


def wanted(root=ROOT):
    "What settings.ini asks for: to use the package with every extra, and to work on it."
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(root / "settings.ini", encoding="utf-8")
    facts = config["DEFAULT"]
    keys = [key for key in facts if key.endswith("requirements") and not key.startswith("browser")]
    return sorted({requirement for key in keys for requirement in facts[key].split()})


def locked(text):
    "Name -> (version, hashes) of a file that this script wrote."
    found = {}
    for entry in re.split(r"\n(?=\S)", "\n".join(line for line in text.splitlines() if not line.startswith("#"))):
        if match := re.match(r"([\w.-]+)==(\S+)", entry.strip()):
            found[match[1]] = match[2], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry)
    return found


def with_tool(package, command, **options):
    "Run a command of a package that is installed for as long as it runs; returns its standard output."
    with tempfile.TemporaryDirectory(prefix="lesa-tool-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        programs = Path(folder) / "bin"
        pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q", package]
        subprocess.run(pip, check=True)
        program = [str(programs / command[0]), *command[1:]]
        return subprocess.run(program, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options).stdout


def lock():
    command = ["uv", "pip", "compile", "-", "--python-version", PYTHON, "--python-platform", PLATFORM, "--no-config"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--quiet"]
    settings = {**os.environ, "UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}  # certificates as pip has them
    text = with_tool("uv", command, input="\n".join(wanted()) + "\n", env=settings)
    (ROOT / LOCK).parent.mkdir(exist_ok=True)
    (ROOT / LOCK).write_text(_HEAD + text, encoding="utf-8")
    print(f"{LOCK}: {len(locked(text))} packages")


def sbom():
    (ROOT / SBOM).parent.mkdir(exist_ok=True)
    command = ["cyclonedx-py", "requirements", str(LOCK), "--output-format", "JSON", "--output-file", str(SBOM)]
    with_tool("cyclonedx-bom", command)
    print(f"{SBOM}: written")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sbom", action="store_true", help="list what the lock file pins, as CycloneDX")
    try:
        sbom() if parser.parse_args().sbom else lock()
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {Path(error.cmd[0]).name} failed; its reason stands above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
