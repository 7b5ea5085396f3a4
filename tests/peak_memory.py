"""How much memory a process held at most. `getrusage` would also count what its parent held when it was started."""
from pathlib import Path


def reset_peak():
    """Count from now on, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_mib() -> int:
    """The most that this process held since it began, or since `reset_peak`, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))//1024
