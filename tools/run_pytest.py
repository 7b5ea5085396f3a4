"""Run pytest and write down, as it happens, which test starts and how each ends: one JSON object per line.

    python tools/run_pytest.py events.jsonl done.txt [pytest's arguments]

Tests named in done.txt are left out: after a test that hung or killed its process, the others still get their turn.
"""

import json
import sys
from pathlib import Path

if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # a test sees the project, not its tools

import pytest


class Reporter:
    def __init__(self, events, done):
        self.events = open(events, "a", encoding="utf-8", buffering=1)
        self.done = done
        self.failed, self.seconds = [], 0.0

    def write(self, **event):
        self.events.write(json.dumps(event) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        items[:] = [item for item in items if item.nodeid not in self.done]

    def pytest_collectreport(self, report):
        if report.failed:
            self.write(
                event="end", test=f"{report.nodeid} (collecting)", passed=False, seconds=0, text=str(report.longrepr)
            )

    def pytest_deselected(self, items):
        self.write(event="deselected", tests=[item.nodeid for item in items])

    def pytest_runtest_logstart(self, nodeid):
        self.failed, self.seconds, self.passed = [], 0.0, False
        self.write(event="start", test=nodeid)

    def pytest_runtest_logreport(self, report):
        self.seconds += report.duration
        if report.skipped:  # a skipped test, or one that is expected to fail, proves nothing
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
            self.failed.append(f"skipped, so it proves nothing: {reason}")
        elif report.failed:
            self.failed.append(report.longreprtext or f"failed in {report.when}")
        elif report.when == "call":
            self.passed = True

    def pytest_runtest_logfinish(self, nodeid):
        passed = self.passed and not self.failed
        self.write(event="end", test=nodeid, passed=passed, seconds=self.seconds, text="\n".join(self.failed))


if __name__ == "__main__":
    events, done, *arguments = sys.argv[1:]
    already = set(Path(done).read_text(encoding="utf-8").splitlines())
    sys.exit(pytest.main(arguments, plugins=[Reporter(events, already)]))
