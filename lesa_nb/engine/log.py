"""The log of a run: one line of JSON for each thing that happened, and the same for TensorBoard."""
from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from lesa_nb.io.atomic import atomic_text
from lesa_nb.io.patience import patiently

__all__ = ["read_log", "RunLog"]


def read_log(folder: str | PathLike) -> list[dict[str, Any]]:
    """The events of a run in a folder, in order; a line that was torn by a crash is left out."""
    path = Path(folder)/"log.jsonl"
    events = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict)]


def _numbers(event: dict[str, Any]) -> dict[str, float]:
    """What TensorBoard shows of an event."""
    if event["kind"] == "valid":
        return event["scores"]
    if event["kind"] == "step":
        return dict(event["losses"], lr=event["lr"])
    return {}


@contextlib.contextmanager
def _told_as(path: str) -> Iterator[None]:
    """Around writing to a log: an error of the disk says which file, and what to do."""
    try:
        yield
    except OSError as error:
        told = OSError(f"{path}: the log could not be written ({error.strerror}); the last checkpoint is intact. Make "
                       "room, and resume")
        told.errno = error.errno
        raise told from None


class RunLog:
    """Writes events to log.jsonl and, if wanted, to TensorBoard; what lies after the checkpoint is taken back first.

    Args:
        folder: Of the run.
        epoch: Where the run stands: events after this epoch and step are taken back.
        step: The step in that epoch.
        per_epoch: Steps in an epoch; about a hundred of them are written.
        tensorboard: Write files for TensorBoard, too.

    Raises:
        ModuleNotFoundError: TensorBoard is wanted and not installed.
        OSError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, *, epoch: int, step: int, per_epoch: int, tensorboard: bool):
        self._per_epoch, self._every, self._board = per_epoch, max(1, per_epoch//100), None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ModuleNotFoundError("TensorBoard's files need its package: pip install 'lesa_nb[train]', or "
                                          "leave them out") from None
        known = [e for e in read_log(folder) if (e.get("epoch", 0), e.get("step", 0)) <= (epoch, step)]
        # scores that the checkpoint does not count come again
        known = [e for e in known if e.get("kind") != "valid" or (e["epoch"], e["step"]) != (epoch, step)]
        path = atomic_text(folder/"log.jsonl", "".join(json.dumps(event) + "\n" for event in known), what="the log")
        self._file = open(path, "a", encoding="utf-8")
        if tensorboard:
            self._board = SummaryWriter(folder/"tensorboard", purge_step=epoch*per_epoch + step + 1)

    def __call__(self, event: dict[str, Any]) -> None:
        """Write an event; of the steps, each hundredth of an epoch and its last one.

        Raises:
            OSError: The log cannot be written to.
        """
        step = event["step"]
        if event["kind"] == "step" and step % self._every and step != self._per_epoch:
            return
        with _told_as(self._file.name):
            self._file.write(json.dumps(event) + "\n")
            patiently(self._file.flush)
        if self._board:
            with _told_as(self._board.log_dir):
                for name, value in _numbers(event).items():
                    self._board.add_scalar(f"{event['kind']}/{name}", value, event["epoch"]*self._per_epoch + step)

    def close(self) -> None:
        """Close the files."""
        with contextlib.suppress(OSError):  # a line that found no room was told when it was written
            self._file.close()
        with contextlib.suppress(OSError):
            if self._board:
                self._board.close()
