"""What a reader sees, in a real browser: `make test-browser`. Not part of `make test`, for it needs Chromium.

The browser is Debian's chromium, Google's chrome or the one that LESA_CHROMIUM names. Where there is none every test
fails and says so. JupyterLab runs as `make lab` starts it, on a copy of the project under git.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from browser_facts import DESK, ROOT, TOKEN

sys.path.append(str(ROOT / "tools"))

import project  # noqa: E402

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="session")
def browser():
    "A headless Chromium."
    found = os.environ.get("LESA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.fail(
            "no Chromium here, so nothing was tested: install one (Debian, Ubuntu: apt install chromium), "
            "or name its program in LESA_CHROMIUM",
            pytrace=False,
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def _nothing_passes_without(browser):
    "A test that would do without a browser proves nothing here either."


class Console(list):
    "Everything that a page complains of: errors, warnings, requests that failed or left this machine."

    def listen(self, page):
        page.on("pageerror", lambda error: self.append(f"error: {error}"))
        page.on("console", lambda message: self.append(f"{message.type}: {message.text}"))
        page.on("requestfailed", lambda request: self.append(f"failed: {request.url}"))


@pytest.fixture
def open_page(browser):
    "open_page(viewport=..., color_scheme=...): a page of a context of its own, with its `.complaints`."
    contexts = []

    def open_(**options):
        context = browser.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        page = context.new_page()
        page.complaints = Console()
        page.complaints.listen(page)
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    "A copy of the project, under git."
    folder = tmp_path_factory.mktemp("browser") / "lesa copy"
    project.copy(ROOT, folder)
    who = ["-c", "user.name=tests", "-c", "user.email=tests@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "as it was"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def unclean(copy):
    "unclean(): what git says has changed in the copy; everything is put back after the test."

    def status():
        shown = ["git", "status", "--porcelain"]
        return subprocess.run(shown, cwd=copy, check=True, capture_output=True, text=True).stdout.splitlines()

    yield status
    subprocess.run(["git", "checkout", "-q", "."], cwd=copy, check=True)


class Lab:
    "JupyterLab as `make lab` starts it."

    def __init__(self, copy, scratch):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = scratch / "log.txt"
        env = {**os.environ, "PYTHONPATH": str(copy)}
        env.pop("MPLBACKEND", None)  # a kernel has its own, which shows figures
        for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
            (scratch / variable).mkdir()
            env[variable] = str(scratch / variable)
        recipe = (copy / "Makefile").read_text(encoding="utf-8")
        script = re.search(r"^lab:.*\n\t@\$\(dev\) -- python (\S+) \$\(ARGS\)$", recipe, re.MULTILINE)[1]
        options = ["--no-browser", f"--port={self.port}", "--ServerApp.port_retries=0"]
        options += [f"--IdentityProvider.token={TOKEN}"]
        options += ["--allow-root"] if os.geteuid() == 0 else []
        command = [sys.executable, str(copy / script), *options]
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(command, cwd=copy, env=env, stdout=log, stderr=subprocess.STDOUT)
        self.wait()

    @property
    def log(self):
        return self.log_file.read_text(encoding="utf-8")

    def wait(self, seconds=90):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/api?token={TOKEN}", timeout=5)
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.3)
        self.close()
        pytest.fail(f"JupyterLab did not start:\n{self.log}", pytrace=False)

    def ask(self, way, method="GET"):
        "What the server answers to a request of its REST interface, as JSON."
        key = {"Authorization": f"token {TOKEN}"}
        request = urllib.request.Request(f"{self.url}/{way}", method=method, headers=key)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def forget(self):
        "End the kernels, and forget which notebooks were open."
        for session in self.ask("api/sessions"):
            self.ask(f"api/sessions/{session['id']}", "DELETE")
        with contextlib.suppress(urllib.error.HTTPError):  # there may be none
            self.ask("lab/api/workspaces/default", "DELETE")

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture
def new_lab(copy, tmp_path):
    "new_lab(): JupyterLab that was not there before."
    servers = []

    def start():
        servers.append(Lab(copy, tmp_path))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def lab_server(copy, tmp_path_factory):
    server = Lab(copy, tmp_path_factory.mktemp("jupyter"))
    yield server
    server.close()


@pytest.fixture
def lab(lab_server):
    "JupyterLab, in which nothing is open."
    lab_server.forget()
    yield lab_server
    lab_server.forget()


@pytest.fixture
def accessible():
    "accessible(page): what axe-core finds serious or critical."

    def check(page):
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(page).response["violations"]
        return [
            f"{rule['id']} ({rule['impact']}): {rule['help']}: {[node['html'][:120] for node in rule['nodes']][:3]}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
        ]

    return check


@pytest.fixture
def narrow_enough():
    "narrow_enough(page): what sticks out of the page to the right; things that scroll by themselves may."

    def check(page):
        return page.evaluate(
            """() => {
              const {clientWidth: width, scrollWidth} = document.documentElement, out = [];
              if (scrollWidth > width) out.push(`the page is ${scrollWidth} wide, not ${width}`);
              const scrolls = e => e && e !== document.body
                && (/(auto|scroll|hidden)/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
              for (const e of document.body.querySelectorAll("*")) {
                const {width: wide, right} = e.getBoundingClientRect();
                if (wide && right > width + 1 && !scrolls(e) && !e.closest(".unseen"))
                  out.push(`<${e.tagName}> ends at ${Math.round(right)}: ${e.textContent.trim().slice(0, 60)}`);
              }
              return out;
            }"""
        )

    return check
