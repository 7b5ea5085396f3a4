"""A small run for the tests: three LESA blocks on digits, seconds an epoch. A script does one thing in a process."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from lesa_nb.data.pictures import digits
from lesa_nb.engine.recipe import Recipe
from lesa_nb.engine.run import fit
from lesa_nb.engine.task import Task
from lesa_nb.models.resnet import ResNet
from lesa_nb.tasks.classify import classification_losses, classification_scores, collate_classification

RECIPE = Recipe(
    "digits", epochs=4, batch_size=32, lr=0.02, lr_batch=32, nesterov=True, weight_decay=1e-4, warmup_steps=3, ema=0.9
)


class Digits(Dataset):
    "The first digits, twice as large, with noise that depends on the key alone. Some pictures can be made to fail."

    def __init__(self, n, *, start=0, broken=None, poisoned=None, seed=0):
        part = digits(channels=3).train
        self.images = F.interpolate(part.images[start : start + n], scale_factor=2.0)
        self.labels, self.seed, self.broken, self.poisoned = part.labels[start : start + n], seed, broken, poisoned

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        epoch, i = key if isinstance(key, tuple) else (None, key)
        if key == self.broken:
            raise ValueError(f"digits/{i}.png: the picture cannot be read: broken data stream")
        x = self.images[i]
        if epoch is not None:
            x = x + 0.1 * torch.randn(
                x.shape, generator=torch.Generator().manual_seed(self.seed * 10**9 + epoch * 10**6 + i)
            )
        return (x * float("nan") if key == self.poisoned else x), int(self.labels[i]), f"digits/{i}.png"


def net():
    return ResNet(
        ("C", "L", "L"), strides=(1, 1, 1), base=8, heads=2, num_classes=10, image_size=16, position="factored"
    )


def names_of(batch):
    return batch.paths


def make_task(recipe=RECIPE, *, train=128, valid=50, metadata=None, build=net, **faults):
    return Task(
        metadata or dict(arch="tiny", classes=10),
        recipe,
        build,
        Digits(train, **faults),
        Digits(valid, start=1000),
        collate_classification,
        partial(classification_losses, recipe=recipe),
        partial(classification_scores, classes=10),
        names_of,
        "top1",
        16,
    )


def kill_often(folder, times, seed):
    "Train in forked children that are killed at random moments, most of them while they save; then in one that ends."
    torch.set_num_threads(1)
    chance = torch.Generator().manual_seed(seed)
    killed = ended = 0
    while killed < times:
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            for _ in fit(make_task(), folder, resume=True, minutes=0.0, device="cpu"):
                pass
            os._exit(0)
        delay = 0.15 + 0.9 * torch.rand(1, generator=chance).item()
        signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, delay)
        _, status = os.waitpid(child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            assert os.waitstatus_to_exitcode(status) == 0, "a resumed run failed"
        last = Path(folder, "last.pt")
        if last.exists():
            torch.load(last, weights_only=True)  # never torn
        if not os.WIFSIGNALED(status) and killed < times:  # it got to the end: another run
            ended += 1
            os.rename(folder, Path(folder).with_name(f"{Path(folder).name}-{ended}"))
    for _ in fit(make_task(), folder, resume=True, device="cpu"):
        pass
    print(f"killed {killed}")


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    if what == "kill":
        kill_often(folder, int(rest[0]), int(rest[1]))
    if what == "metrics":  # 1,003 pictures, shared by all processes
        import json

        from lesa_nb.engine._folder import RunFolder
        from lesa_nb.engine.group import process_group
        from lesa_nb.engine.run import Training, _Run, _scores
        from lesa_nb.engine.signals import Stop

        with process_group(torch.device("cpu")) as ranks:
            task = make_task(valid=437, train=64)._replace(valid=Digits(1003))
            training = Training(task, seed=0, device=torch.device("cpu"), ranks=ranks)
            run = _Run(training, RunFolder(Path(folder).parent, ranks), Stop(), workers=0, minutes=15.0)
            scores = _scores(run)
            if ranks.rank == 0:
                Path(folder).write_text(json.dumps(scores))
    if what == "fails":  # one process dies in the middle of an epoch
        rank = int(os.environ["RANK"])
        for event in fit(make_task(), folder, device="cpu"):
            if rank == 1 and event["step"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
