"""What every benchmark shares: metadata of the run, timing, peak memory, and a JSON file at the end.

Contenders of one comparison are timed in turns, round after round, so that a busy moment of the machine hits all of
them; the fastest round counts. Peak memory is read from the allocator, not from the operating system: what one call
holds at most beyond what was there before it.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler that reads the allocator is chatty

import torch  # noqa: E402

from lesa_nb.io.atomic import atomic_text  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("OUT", ROOT / "benchmarks" / "results"))


def machine_metadata(device):
    "Where and with what a result was measured."
    import torchvision

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    cpu = (
        next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    return dict(
        date=datetime.date.today().isoformat(),
        commit=commit or "unknown",
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        device=torch.cuda.get_device_name() if device == "cuda" else cpu,
        threads=torch.get_num_threads(),
        tf32=torch.backends.cuda.matmul.allow_tf32 if device == "cuda" else None,
    )


def _sync(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(contenders, device="cpu", rounds=5, warm=True):
    """Name -> seconds of the fastest of `rounds` rounds, of name -> callable. All take turns.

    warm: call each once before; what takes minutes needs none.
    """
    best = {name: float("inf") for name in contenders}
    if warm:
        for work in contenders.values():
            work()  # allocator, kernels, compilers
    for _ in range(rounds):
        for name, work in contenders.items():
            _sync(device)
            start = time.perf_counter()
            work()
            _sync(device)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def peak_mb(work, device="cpu", warm=True):
    "The most that `work()` holds at once beyond what was allocated before, in MB."
    if warm:
        work()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        work()
    events = sorted(
        (e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    )
    held = peak = 0
    for e in events:
        held += e.nbytes()
        peak = max(peak, held)
    return peak / 1e6


def timm_attention(C, side):
    """Name -> timm's attention of equal width, where timm is installed.

    A timm that keeps it elsewhere is an error, not a missing row.
    """
    if not find_spec("timm"):
        return {}
    from timm.layers.bottleneck_attn import BottleneckAttn

    return {"timm BottleneckAttn": BottleneckAttn(C, C, feat_size=(side, side), num_heads=8)}


def arguments(question):
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="CPU threads; all cores if not given")
    parser.add_argument("--rounds", type=int, default=5, help="timing rounds; the fastest counts")
    parser.add_argument("--quick", action="store_true", help="small sizes: does the script run?")
    parser.add_argument(
        "--only",
        nargs="+",
        help="names of rows: measure these and keep the others of the file, if they are of the same commit and machine",
    )
    return parser


def start(parser):
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


def chosen(names, args):
    "Those of the rows' names that were asked for, in their order."
    if unknown := set(getattr(args, "only", None) or ()) - set(names):
        raise SystemExit(f"--only: expected some of {', '.join(names)}; found {', '.join(sorted(unknown))}")
    return [n for n in names if not getattr(args, "only", None) or n in args.only]


def merged(path, run):
    "The rows of a run in pieces: the file's, where commit and machine are the same, with the new ones over them."
    old = json.loads(path.read_text()) if path.exists() else {}
    if any(old.get(k) != run[k] for k in ("commit", "device", "threads", "torch")):
        return run["rows"]
    rows = {row["name"]: row for row in old["rows"]}
    for row in run["rows"]:
        rows[row["name"]] = rows.get(row["name"], {}) | row
    return list(rows.values())


def results_path(name, args):
    "Where a benchmark's numbers lie: benchmarks/results/NAME-DEVICE.json (or in $OUT)."
    return RESULTS / f"{name}-{args.device}{'-quick' if args.quick else ''}.json"


def save(name, question, rows, args, summary=lambda rows: {}, **more):
    "Write the numbers, whole or not at all."
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = results_path(name, args)
    run = dict(question=question, **machine_metadata(args.device), **more, rows=rows)
    if getattr(args, "only", None):
        run["rows"] = merged(path, run)
    run |= summary(run["rows"])
    atomic_text(path, json.dumps(run, indent=1) + "\n")
    print(f"-> {path}")
