"""Make sure a virtual environment of this project exists, then run a command in it.

    python tools/in_env.py .venv-test dev                              # install `.[dev]`, editable
    python tools/in_env.py .venv-test dev -- python tools/test.py      # ... and run this
    python tools/in_env.py --or .venv .venv-demo demo -- lesa demo     # use .venv where it is up to date

The environment is made once and made again, from nothing, when settings.ini, setup.py or pyproject.toml is newer than
its stamp. An environment that this script did not make is added to, never emptied.
Only the standard library, and syntax that an old Python can read, so that it can say that it is too old.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST, NEWEST_TRIED = (3, 10), (3, 13)
STAMP = "lesa_nb.stamp"  # inside the environment: "making", or the extra that is installed
FACTS = ("settings.ini", "setup.py", "pyproject.toml")  # what decides which packages are installed
CONTAINS = {  # what each one brings
    "browser": ("browser", "dev", "demo", "site"),
    "dev": ("dev", "demo"),
    "demo": ("demo",),
    "site": ("site",),
}
EDITABLE = {"dev": ".[dev]", "browser": ".[dev,browser]", "site": "."}  # installed in place, not as a copy
ALONE = ("site",)  # the extra's packages without what the package itself needs: it is read, not run


def stop(message):
    sys.exit("error: " + message)


def python_of(venv):
    return os.path.join(os.path.abspath(venv), "bin", "python")


def stamp_of(venv):
    "What the stamp says, or None for an environment that is not ours or not there."
    try:
        with open(os.path.join(venv, STAMP)) as file:
            return file.read().strip()
    except OSError:
        return None


def newest(paths):
    return max([os.path.getmtime(path) for path in paths if os.path.exists(path)] or [0])


def stamped_at(venv):
    return os.path.getmtime(os.path.join(venv, STAMP))


def is_ready(venv, extra):
    "Stamped for this extra, newer than what it was made from, and its Python still starts."
    if extra not in CONTAINS.get(stamp_of(venv), ()):
        return False
    if stamped_at(venv) < newest(os.path.join(ROOT, name) for name in FACTS):
        return False
    try:
        return (
            subprocess.call(
                [python_of(venv), "-c", "import lesa_nb"], cwd=venv, env=environment(venv), stderr=subprocess.DEVNULL
            )
            == 0
        )
    except OSError:
        return False


def environment(venv=None):
    "The variables for a command: nothing of the user's own Python set-up reaches in."
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    env["PYTHONNOUSERSITE"] = "1"
    if venv:
        env["VIRTUAL_ENV"] = os.path.abspath(venv)
        env["PATH"] = os.path.join(os.path.abspath(venv), "bin") + os.pathsep + env.get("PATH", os.defpath)
    return env


def maker(venv):
    "The Python that makes the environment: not one that lives in it, as that goes when the environment does."
    if os.path.realpath(sys.prefix) != os.path.realpath(venv):
        return sys.executable
    outside = os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2])
    if not os.path.exists(outside):
        stop("%s is out of date and in use: deactivate it, or name another Python with PYTHON=" % venv)
    return outside


def stamp(venv, text):
    with open(os.path.join(venv, STAMP), "w") as file:
        file.write(text + "\n")


def create(venv):
    "An empty environment; one of ours that is out of date goes first."
    if os.path.exists(venv) and stamp_of(venv) is None and os.listdir(venv):
        if not os.path.exists(os.path.join(venv, "pyvenv.cfg")):
            stop("%s exists and is not a virtual environment: name another one with VENV=" % venv)
        if not os.path.exists(python_of(venv)):
            stop("%s has no bin/python: remove it, or name another one with VENV=" % venv)
        print("adding to the environment %s, which was made by hand" % venv)
        return
    try:
        import ensurepip  # noqa: F401  (Debian and Ubuntu ship it apart)
        import venv as _  # noqa: F401
    except ImportError:
        stop(
            "%s cannot make virtual environments: install its venv package (Debian, Ubuntu: python3-venv)"
            % sys.executable
        )
    python = maker(venv)
    print("making the environment %s with Python %d.%d" % ((venv,) + sys.version_info[:2]))
    sys.stdout.flush()
    if os.path.isdir(venv):
        shutil.rmtree(venv)
    os.makedirs(venv)
    stamp(venv, "making")  # an interrupted run is recognised and starts again
    if subprocess.call([python, "-m", "venv", venv], env=environment()):
        stop("could not make the environment %s (a path with ':' in it is refused by Python)" % venv)


def pip(venv, arguments):
    command = [python_of(venv), "-m", "pip", "--disable-pip-version-check", "install", "--no-input"] + arguments
    print("pip install " + " ".join(arguments))
    sys.stdout.flush()
    if subprocess.call(command, cwd=ROOT, env=environment(venv)):
        stop("pip could not install lesa_nb: its reason stands above. Without a network nothing can be installed.")


def requirements(extra):
    "What settings.ini says that an extra is, as setup.py reads it."
    from configparser import ConfigParser

    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(os.path.join(ROOT, "settings.ini"), encoding="utf-8")
    return config["DEFAULT"][extra + "_requirements"].split()


def install(venv, extra):
    # setuptools puts a module that was deleted from the project back into the package if an old build is lying about
    shutil.rmtree(os.path.join(ROOT, "build", "lib"), ignore_errors=True)
    start = time.time()
    if extra in ALONE:
        pip(venv, requirements(extra))
        pip(venv, ["--no-deps", "-e", EDITABLE[extra]])
    else:
        pip(venv, ["-e", EDITABLE[extra]] if extra in EDITABLE else [".[%s]" % extra])
    stamp(venv, extra)
    print("installed in %.0f s" % (time.time() - start))
    sys.stdout.flush()


def sources_changed(venv, extra):
    "A package installed as a copy is stale once the sources are newer."
    if stamp_of(venv) in EDITABLE:
        return False  # editable: it is the sources
    package = os.path.join(ROOT, "lesa_nb")
    return newest(
        os.path.join(folder, f) for folder, _, files in os.walk(package) for f in files if f.endswith(".py")
    ) > stamped_at(venv)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--or", dest="other", metavar="VENV", help="use this environment instead if it is up to date")
    parser.add_argument("venv", help="folder of the environment")
    parser.add_argument("extra", choices=sorted(CONTAINS), help="which extra to install")
    options, command = sys.argv[1:], []
    if "--" in options:
        at = options.index("--")
        options, command = options[:at], options[at + 1 :]
    args = parser.parse_args(options)

    if sys.version_info[:2] < OLDEST:
        stop(
            "lesa_nb needs Python %d.%d or newer, this is %s (%s): name another one with PYTHON="
            % (OLDEST + (sys.version.split()[0], sys.executable))
        )
    if sys.version_info[:2] > NEWEST_TRIED:
        print("note: lesa_nb is tested up to Python %d.%d" % NEWEST_TRIED)

    venv = args.venv
    if args.other and is_ready(args.other, args.extra):
        venv = args.other
    if not is_ready(venv, args.extra):
        have = stamp_of(venv)
        if have in CONTAINS[args.extra] and is_ready(venv, have):
            print("adding to the environment %s" % venv)  # up to date, with less in it
        else:
            create(venv)
        install(venv, args.extra)
    elif sources_changed(venv, args.extra):
        shutil.rmtree(os.path.join(ROOT, "build", "lib"), ignore_errors=True)
        pip(venv, ["--no-deps", "--force-reinstall", "."])
        stamp(venv, args.extra)
    if command:
        program = os.path.join(os.path.abspath(venv), "bin", command[0])
        if not os.path.exists(program):
            stop("%s has no command %s" % (venv, command[0]))
        os.execve(program, [program] + command[1:], environment(venv))


if __name__ == "__main__":
    main()
