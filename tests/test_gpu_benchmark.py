"""The script for the first GPU, rehearsed on a CPU: every part to its end, every row guarded."""
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def gpu(benchmark):
    return benchmark("gpu")


@pytest.mark.slow
def test_every_part_runs_to_its_end(root, tmp_path):
    words = [sys.executable, root/"benchmarks"/"gpu.py", "--device", "cpu", "--quick"]
    done = subprocess.run(words, env={**os.environ, "OUT": str(tmp_path), "PYTHONPATH": str(root)}, capture_output=True,
                          text=True, timeout=560)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path/"gpu-cpu-quick.json").read_text())
    assert {"date", "device", "commit", "python", "torch", "torchvision", "question", "seconds"} <= found.keys()
    rows = found["rows"]
    assert list(rows) == ["parity", "memory", "times", "networks", "training", "detectors", "others"]
    assert found["faults"] == [] and all(rows[part] for part in rows if part != "others")
    assert all(row.get("ok", True) and not row.get("failed") for part in rows.values() for row in part)
    assert {"size", "error", "limit"} <= rows["parity"][0].keys()
    assert rows["memory"][0]["slope"] <= rows["memory"][0]["limit"]
    assert {"explicit", "LESA", "rows", "channels", "conv 3x3"} <= rows["times"][0]["seconds"].keys()


def test_a_row_that_fails_is_written_down_and_the_others_go_on(gpu, monkeypatch):
    saved = []
    parts = {"one": lambda args: iter([("breaks", lambda: 1/0), ("misses", lambda: dict(ok=False))]),
             "two": lambda args: iter([("works", lambda: dict(ok=True))])}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "save", lambda *words, **more: saved.append(more))
    results, faults = gpu.run(SimpleNamespace(device="cpu", minutes=1.))
    assert results["one"][0]["failed"] == "ZeroDivisionError: division by zero" and results["two"][0]["ok"]
    assert faults == ["one: breaks", "one: misses"] and len(saved) == 2
    results, faults = gpu.run(SimpleNamespace(device="cpu", minutes=0.))
    assert results["two"][0]["left_out"] == "0 minutes were over" and not faults
