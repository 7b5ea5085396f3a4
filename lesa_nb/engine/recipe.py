"""How to train: one frozen object that holds every number of a recipe, and refuses numbers that make no sense."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any

from lesa_nb.engine.group import world_size

__all__ = ["Recipe", "fit_batch", "describe_recipe"]

# name -> least and largest value: beyond it is a slip of the finger
_INTEGERS = dict(epochs=(1, 100_000), batch_size=(1, 2**20), lr_batch=(1, 2**20), accumulate=(1, 2**20),
                 warmup_steps=(0, 10**9))
# name -> least value, whether it may be that, largest value, whether it may be that
_RANGES = dict(
    lr=(0., False, math.inf, False), momentum=(0., True, 1., False), weight_decay=(0., True, math.inf, False),
    warmup_epochs=(0., True, math.inf, False), warmup_from=(0., True, 1., True), label_smoothing=(0., True, 1., True),
    mixup=(0., True, math.inf, False), cutmix=(0., True, math.inf, False), ema=(0., True, 1., False),
    clip=(0., True, math.inf, False))
_WORDS = dict(precision=("float32", "bfloat16", "float16", "float64"), optimizer=("sgd", "adamw"))
_SWITCHES = ("nesterov", "decay_all", "channels_last", "compile", "sync_norm", "tf32", "deterministic")


def _in_words(low: float, with_low: bool, high: float, with_high: bool) -> str:
    """A range for people."""
    least = f"{'at least' if with_low else 'more than'} {low:g}"
    if math.isinf(high):
        return f"{least} and finite"
    return f"{least} and {'at most' if with_high else 'less than'} {high:g}"


@dataclass(frozen=True)
class Recipe:
    """All that decides a result, but for the samples, the network and the seed.

    Attributes:
        name: What it is called.
        epochs: Passes over the samples.
        batch_size: Samples in one step: all processes and all their micro-batches together.
        lr: The learning rate for a batch of `lr_batch` samples.
        lr_batch: See `lr`.
        optimizer: "sgd" or "adamw".
        momentum: Of either optimizer; AdamW's second memory is 0.99.
        nesterov: SGD's momentum looks one step ahead.
        weight_decay: Pull of the weights towards zero.
        decay_all: False: no decay of norms and biases.
        warmup_epochs: The rate rises for so many epochs ...
        warmup_steps: ... and so many steps, together at most a quarter of the run.
        warmup_from: The share of the rate that it starts from.
        milestones: Epochs after which the rate falls to a tenth; none: it falls as a cosine, to 0.
        label_smoothing: Share of the target that is spread over all classes.
        mixup: Parameter of MixUp's Beta distribution; 0: off.
        cutmix: Likewise of CutMix.
        ema: Memory of the exponential moving average of the weights, per step; 0: none is kept.
        precision: "float32"; "bfloat16": autocast; "float16": autocast with a scaled loss, for GPUs without bfloat16;
            "float64": all of it, to compare runs.
        tf32: On a GPU, float32 products and convolutions with 11 bits for each number: several times faster.
        deterministic: PyTorch's deterministic forms of operators: the same run again gives the same bits on a GPU, too,
            if the network has none of the operators without such a form; a run names those.
        channels_last: Memory format of images and weights.
        accumulate: Micro-batches that a process cuts its samples of one step into.
        clip: Longest gradient that is not shortened; 0: none is.
        compile: torch.compile.
        sync_norm: Batch norm over the samples of all processes; False: of each process by itself.
        augment: Which random changes the samples go through: the task's word.

    Raises:
        ValueError: A number is out of its range; the sentence says which, what was expected and what was found.
    """

    name: str
    epochs: int
    batch_size: int
    lr: float
    lr_batch: int
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.
    decay_all: bool = True
    warmup_epochs: float = 0.
    warmup_steps: int = 0
    warmup_from: float = 0.
    milestones: tuple[int, ...] = ()
    label_smoothing: float = 0.
    mixup: float = 0.
    cutmix: float = 0.
    ema: float = 0.
    precision: str = "float32"
    tf32: bool = False
    deterministic: bool = False
    channels_last: bool = False
    accumulate: int = 1
    clip: float = 0.
    compile: bool = False
    sync_norm: bool = True
    augment: str = "published"

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                expected = f"{', '.join(words[:-1])} or {words[-1]}"
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")
        for name, (least, most) in _INTEGERS.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
                raise ValueError(f"{name} of a recipe must be whole, at least {least} and at most {most:,}, "
                                 f"got {value!r}")
        for name, (low, with_low, high, with_high) in _RANGES.items():
            value = getattr(self, name)
            number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
            inside = low < number < high or with_low and number == low or with_high and number == high
            if not inside:
                raise ValueError(f"{name} of a recipe must be {_in_words(low, with_low, high, with_high)}, "
                                 f"got {value!r}")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} of a recipe must be True or False, got {getattr(self, name)!r}")
        rising = isinstance(self.milestones, (tuple, list)) and all(
            isinstance(m, Integral) and not isinstance(m, bool) and m >= 1 for m in self.milestones)
        if not rising or list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones of a recipe must be epochs in rising order, from 1, got {self.milestones!r}")
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum: momentum of a recipe must be more than 0, got 0")

    @property
    def peak_lr(self) -> float:
        """The largest learning rate: `lr` scaled to the batch."""
        return self.lr*self.batch_size/self.lr_batch

    def warmup(self, steps_per_epoch: int) -> int:
        """Steps on the way up: what was asked for, and at most a quarter of the run."""
        asked = round(self.warmup_epochs*steps_per_epoch) + self.warmup_steps
        return min(asked, self.epochs*steps_per_epoch//4)

    def local_batch_size(self, processes: int = 1) -> int:
        """Samples of one micro-batch: a batch is cut among processes, and in each into `accumulate` micro-batches.

        Raises:
            ValueError: The batch cannot be cut into so many equal pieces.
        """
        pieces = processes*self.accumulate
        if self.batch_size % pieces:
            raise ValueError(
                f"a batch of {self.batch_size} samples cannot be cut for {processes} process(es) with "
                f"{self.accumulate} micro-batch(es) each: choose a batch size that {pieces} divides")
        return self.batch_size//pieces

    def fitted(self, samples: int, processes: int = 1) -> Recipe:
        """The same recipe, or one whose batch is smaller, where there are fewer samples than a batch of it takes.

        The smaller batch is as large as the samples allow: each process and each of its micro-batches gets the same
        number, no more at once than before, and in no more micro-batches. The learning rate follows, see `peak_lr`.

        Args:
            samples: In the training set, at least one.
            processes: That share a batch.

        Raises:
            ValueError: There are more processes than samples.
        """
        if samples >= self.batch_size:
            return self
        if samples < processes:
            raise ValueError(f"{samples} sample(s) to train on for {processes} processes: start no more processes than "
                             "there are samples, or bring more samples")
        at_once = max(1, self.batch_size//(processes*self.accumulate))
        pieces = min(self.accumulate, samples//processes, -(-samples//(processes*at_once)))
        return replace(self, accumulate=pieces, batch_size=samples - samples % (processes*pieces))

    def changed(self, **asked: Any) -> Recipe:
        """The same recipe but for what was asked: other epochs, another batch size; None leaves a number as it is."""
        return replace(self, **{name: value for name, value in asked.items() if value is not None})


def fit_batch(recipe: Recipe, samples: int, say: Callable[[str], None]) -> Recipe:
    """The recipe of a run on so many samples: `Recipe.fitted` for all processes; what it changed is said.

    Args:
        recipe: What was asked for.
        samples: In the training set.
        say: Gets the sentence.
    """
    fitted = recipe.fitted(samples, world_size())
    if fitted != recipe:
        say(f"batch: {samples:,} samples to train on do not fill one of {recipe.batch_size:,}, so a step takes "
            f"{fitted.batch_size:,}, and the learning rate follows: {fitted.peak_lr:g} in place of {recipe.peak_lr:g}")
    return fitted


def describe_recipe(recipe: Recipe, samples: int, processes: int = 1, *, frozen: bool = False) -> str:
    """A recipe in words, before a run: every number, and what follows from them.

    Args:
        recipe: The recipe.
        samples: In the training set.
        processes: That share a batch.
        frozen: Batch norm's statistics do not move, as in detectors.
    """
    local, per_epoch = recipe.local_batch_size(processes), samples//recipe.batch_size
    numbers = ", ".join(f"{key} {value}" for key, value in asdict(recipe).items() if key != "name")
    lines = [f"recipe {recipe.name}: {numbers}"]
    pieces = f"{processes} process(es) x {recipe.accumulate} micro-batch(es) x {local} samples"
    lines.append(f"learning rate: {recipe.lr:g} for {recipe.lr_batch} samples, so {recipe.peak_lr:g} for "
                 f"{recipe.batch_size} ({pieces})")
    asked = round(recipe.warmup_epochs*per_epoch) + recipe.warmup_steps
    if per_epoch and recipe.warmup(per_epoch) < asked:
        lines.append(f"warm-up: {asked:,} steps were asked for, and the run has {recipe.epochs*per_epoch:,}: cut to "
                     f"{recipe.warmup(per_epoch):,}, a quarter of them, so that most steps have the rate asked for")
    if late := [milestone for milestone in recipe.milestones if milestone >= recipe.epochs]:
        lines.append(f"milestones: the run ends before {', '.join(map(str, late))}, so the rate does not fall there")
    norm = recipe.batch_size//recipe.accumulate if recipe.sync_norm else local
    seen = ("batch norm's statistics are frozen" if frozen else
            f"batch norm sees {norm} samples at once (32 when the published numbers were made)")
    lines.append(f"{seen}; {per_epoch:,} steps in an epoch, {per_epoch*recipe.epochs:,} in all")
    return "\n".join(lines)
