"""Processes of Python that start at once: copies of one that has imported PyTorch already; for tests and notebooks.

Importing torch and torchvision takes 3 to 4 seconds of a core, and the tests start hundreds of processes. `Python` is
like `subprocess.Popen([sys.executable, *words])`, but its process is forked from a server (multiprocessing's own) that
has imported what every command needs. What a process reads while it imports (OMP_NUM_THREADS, options of Python, a
missing package) is the server's: a test of those starts a process of its own.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from importlib.metadata import EntryPoint
from multiprocessing import reduction

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

#: what the server imports, once for each process that runs tests; nothing of ours, so a copy of the project can be used
PRELOAD = ["torch", "torchvision.transforms.v2", "torchmetrics.classification", "matplotlib.pyplot", "sklearn.datasets"]
PRELOAD += ["numpy", "PIL.Image", "einops", "jaxtyping", "safetensors.torch", "tyro", "tqdm"]
if "FORKED_PRELOAD" in os.environ:  # projects of the tests need less
    PRELOAD = os.environ["FORKED_PRELOAD"].split()


def context():
    "The context of multiprocessing that forks from the server."
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOAD)  # without effect once the server is there
    return found


class _Descriptor:
    "An open file of this process that goes along to the new one."

    def __init__(self, number):
        self.number = number

    def __getstate__(self):
        return reduction.DupFd(self.number)

    def __setstate__(self, sent):
        self.number = sent.detach()


class Python:
    """A process of Python, as `subprocess.Popen` would give: pid, poll, wait, communicate, send_signal, returncode.

    words: what follows `python`: a script, or `-m` and a module, or `-c` and code, and their arguments.
    cwd, env, stdout, stderr, stdin, text, start_new_session: as Popen takes them (stdin: None, which is empty, or PIPE)
    """

    def __init__(
        self, words, *, cwd=None, env=None, stdin=None, stdout=None, stderr=None, text=False, start_new_session=False
    ):
        self.args, self.returncode = [sys.executable, *map(str, words)], None
        self.stdin = self.stdout = self.stderr = None
        ours, theirs = [], [os.open(os.devnull, os.O_RDONLY), os.dup(1), os.dup(2)]
        for number, asked in ((0, stdin), (1, stdout), (2, stderr)):
            if asked is None:
                continue
            os.close(theirs[number])
            if asked == subprocess.PIPE:
                read, write = os.pipe()
                theirs[number], mine = (read, write) if number == 0 else (write, read)
                mode = ("w" if number == 0 else "r") + ("" if text else "b")
                stream = open(mine, mode, encoding="utf-8" if text else None)
                setattr(self, ("stdin", "stdout", "stderr")[number], stream)
                ours.append(stream)
            elif asked == subprocess.STDOUT:
                theirs[number] = os.dup(theirs[1])
            elif asked == subprocess.DEVNULL:
                theirs[number] = os.open(os.devnull, os.O_RDWR)
            else:
                theirs[number] = os.dup(asked if isinstance(asked, int) else asked.fileno())
        files = [_Descriptor(number) for number in theirs]
        arguments = (list(map(str, words)), str(cwd or os.getcwd()), dict(env or os.environ), files, start_new_session)
        told, tells = os.pipe()
        self._process = context().Process(target=_become, args=(*arguments, _Descriptor(tells)))
        try:
            self._process.start()
        finally:
            for number in (*theirs, tells):
                os.close(number)
        self.pid = self._process.pid
        os.read(told, 1)  # it has left the server's group: who ends its group ends no server
        os.close(told)

    def poll(self):
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, input=None, timeout=None):
        "Read both streams to their ends, side by side, and wait for the process."
        end = None if timeout is None else time.monotonic() + timeout
        if self.stdin:
            if input:
                self.stdin.write(input)
            self.stdin.close()
        read = {}
        threads = [
            threading.Thread(target=lambda s=stream, n=name: read.update({n: s.read()}), daemon=True)
            for name, stream in (("stdout", self.stdout), ("stderr", self.stderr))
            if stream
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if end is None else max(0, end - time.monotonic()))
        self.wait(None if end is None else max(0, end - time.monotonic()))
        return read.get("stdout"), read.get("stderr")

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()


def run(words, *, capture_output=False, text=False, timeout=None, check=False, **options):
    "As `subprocess.run([sys.executable, *words], ...)`."
    if capture_output:
        options.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = Python(words, text=text, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


# ---- in the new process


def _become(words, cwd, env, files, new_session, parent):
    "Run the words as Python would, and end as it would."
    if new_session:
        os.setsid()
    os.write(parent.number, b".")
    os.close(parent.number)
    for number, file in enumerate(files):
        os.dup2(file.number, number)
        os.close(file.number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if "matplotlib" in sys.modules and "MPLBACKEND" in env:  # as it would be, were it imported now
        sys.modules["matplotlib"].rcParams["backend"] = env["MPLBACKEND"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    multiprocessing.set_start_method(None, force=True)  # Python's default for what it starts
    status = _run(words)
    threading._shutdown()  # waits for threads, as the end of Python does
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        status = status or 120
    try:
        sys.stderr.flush()
    except OSError:
        pass
    if status == "interrupted":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def _run(words):
    "The exit status of a script, a module or code."
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    what, rest = words[0], words[1:]
    if what in ("-m", "-c"):
        named, sys.argv = rest[0], [what, *rest[1:]]
    else:
        named, sys.argv = what, words
    first = os.path.dirname(os.path.abspath(named)) if what not in ("-m", "-c") else os.getcwd() if what == "-m" else ""
    sys.path[:0] = [first, *paths]
    try:
        if what == "-m":
            runpy.run_module(named, run_name="__main__", alter_sys=True)
        elif what == "-c":
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(named, "<string>", "exec"), main.__dict__)
        else:
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            main.__file__ = named
            with open(named, encoding="utf-8") as script:
                exec(compile(script.read(), named, "exec"), main.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return "interrupted"
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# ---- kernels of notebooks


class Provisioner(LocalProvisioner):
    "Starts the kernel of a notebook as such a process."

    async def launch_kernel(self, cmd, **options):
        env = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", **options["env"]}
        env["JPY_PARENT_PID"] = str(os.getpid())  # a kernel ends with whom it serves
        self.cwd = options["cwd"]
        self.process = Python(cmd[1:], cwd=self.cwd, env=env, start_new_session=True)
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def provision(manager):
    "Let a manager of jupyter_client start its kernel as such a process."
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:Provisioner", factory.GROUP_NAME)
    manager.kernel_spec.metadata["kernel_provisioner"] = {"provisioner_name": "forked"}
