"""The folder of a run: its log, its checkpoint, and weights to hand on."""
from __future__ import annotations

import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from lesa_nb.engine._checkpoint import commit, read_checkpoint, save_checkpoint
from lesa_nb.engine.group import Ranks
from lesa_nb.engine.log import RunLog
from lesa_nb.io.atomic import atomic_json
from lesa_nb.io.patience import patiently
from lesa_nb.io.tensors import save_tensors

__all__ = ["RunFolder"]


class RunFolder:
    """Writes what happens in a run; the main process writes, and all raise if it cannot.

    Attributes:
        path: The folder.
        checkpoint: The file that a run goes on from.
        ranks: The processes of the run.
        saved: When the checkpoint was last written, by `time.perf_counter`.

    Args:
        path: The folder; it exists.
        ranks: The processes of the run.
    """

    def __init__(self, path: Path, ranks: Ranks):
        self.path, self.ranks, self.checkpoint = path, ranks, path/"last.pt"
        self.saved = time.perf_counter()
        self._commit = commit() if ranks.rank == 0 else None  # of the code that runs, whatever is committed meanwhile
        self._log: RunLog | None = None

    def read(self) -> dict[str, Any] | None:
        """The checkpoint that a run goes on from, the same in all processes; None if there is none.

        Raises:
            ValueError: It is no checkpoint of a run; or some processes find another one, or none; or there are weights
                of a run without one. In all processes.
        """
        content = read_checkpoint(self.checkpoint) if self.checkpoint.exists() else None
        found = "none" if content is None else f"epoch {content['epoch']}, step {content['step']}"
        everyone = self.ranks.gather((socket.gethostname(), found))
        for rank, (host, other) in enumerate(everyone):
            if other != everyone[0][1]:
                raise ValueError(f"{self.checkpoint}: not the same for all: {everyone[0][1]} for process 0 on "
                                 f"{everyone[0][0]}, {other} for process {rank} on {host}: choose a folder that all "
                                 "machines share; if they do, wait a minute until they see the same")
        left = [name for name in ("best.safetensors", "last.safetensors") if (self.path/name).exists()]
        if content is None and left:
            raise ValueError(f"{self.path}: holds weights of a run ({left[0]}) and no checkpoint "
                             f"({self.checkpoint.name}) to go on from; a new run would replace them: choose another "
                             "folder, or move them away; nothing was changed")
        return content

    def open_log(self, *, epoch: int, step: int, per_epoch: int, tensorboard: bool) -> None:
        """Go on with the log where the run stands; see `RunLog`."""
        if self.ranks.rank == 0:
            self._log = RunLog(self.path, epoch=epoch, step=step, per_epoch=per_epoch, tensorboard=tensorboard)

    def event(self, event: dict[str, Any]) -> dict[str, Any]:
        """Write an event to the log; returns it."""
        if self._log:
            self._log(event)
        return event

    def save(self, content: dict[str, Any], weights: dict[str, torch.Tensor], *names: str) -> None:
        """Write weights, then the checkpoint that counts them as written; all processes come here together.

        Args:
            content: Of the checkpoint: a state dict of `Training`.
            weights: Of the network to hand on.
            names: Write the weights as NAME.safetensors, with their metadata inside and beside them as NAME.json.

        Raises:
            OSError: In all processes, if the main one cannot write; the files before are intact.
        """
        def write() -> None:
            for name in names:
                metadata = self._metadata(content)
                save_tensors(weights, self.path/f"{name}.safetensors", metadata, what="the weights")
                atomic_json(self.path/f"{name}.json", metadata)
            save_checkpoint(content, self.checkpoint)

        problem = ""
        if self.ranks.rank == 0:
            try:
                patiently(write)
            except OSError as error:
                problem = str(error)
        self.ranks.agree(problem)
        self.saved = time.perf_counter()

    def _metadata(self, content: dict[str, Any]) -> dict[str, Any]:
        """What a file of weights says about itself."""
        told = {name: content[name] for name in ("recipe", "seed", "data", "epoch", "step", "scores")}
        return dict(content["metadata"], **told, averaged=content["average"] is not None, torch=torch.__version__,
                    commit=self._commit, date=f"{datetime.now():%Y-%m-%d %H:%M}")

    def close(self) -> None:
        """Close the log."""
        if self._log:
            self._log.close()
