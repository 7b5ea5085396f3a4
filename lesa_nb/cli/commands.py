"""Train, score, check and export from a terminal: the same functions as in the notebooks, said in words."""

__all__ = ['UsageError', 'is_chief', 'say', 'positive', 'watched', 'finish', 'how_many_workers', 'RunOptions', 'train_imagenet',
           'eval_imagenet', 'verify_imagenet', 'make_imagenet', 'export', 'train_coco', 'eval_coco',
           'verify_coco_folder', 'make_coco_folder', 'export_testdev']

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from lesa_nb.engine.signals import Stop
from lesa_nb.io.atomic import atomic_json, atomic_path

class UsageError(Exception):
    "A command line that makes no sense: exit status 2."

def is_chief() -> bool:
    "Whether this process is the one that talks."
    return int(os.environ.get("RANK", 0)) == 0

def say(*words):
    "Print, if this process is the chief."
    if is_chief(): print(*words, flush=True)

def positive(**numbers):
    "Refuse numbers below one, by name."
    for name, number in numbers.items():
        if number is not None and number < 1: raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {number}")

def watched(
    events, # of `fit`
    *,
    speak=say, # gets lines
) -> dict: # the last event
    "Show a run while it goes: a bar with loss, rate and speed, a line for every validation."
    import sys

    from tqdm import tqdm
    bar, last = None, {}
    try:
        for last in events:
            kind = last["kind"]
            if kind == "start":
                start, done = last, last["epoch"]*last["steps"] + last["step"]
                where = f"resumed in epoch {last['epoch']} after step {last['step']} of {last['steps']}" if last["resumed"] else "a new run"
                speak(f"{where}: {last['pictures']:,} pictures to train on, {last['valid']:,} to validate, {last['parameters']:,} parameters, {last['processes']} process(es) on {last['device']}")
                quiet = not sys.stderr.isatty()
                bar = tqdm(total=last["epochs"]*last["steps"], initial=done, unit="step", disable=not is_chief(), mininterval=20 if quiet else .5, dynamic_ncols=not quiet)
            elif kind == "step":
                bar.set_description(f"epoch {last['epoch'] + 1}/{start['epochs']}", refresh=False)
                bar.set_postfix_str(f"loss {last['loss']:.3f}, rate {last['lr']:.3g}, {last['images_per_second']:.0f} pictures/s, waiting {last['waiting']:.0%}", refresh=False)
                bar.update()
            elif kind == "valid":
                bar.clear()
                numbers = ", ".join(f"{name} {value:.2f}" for name, value in last["scores"].items())
                speak(f"epoch {last['epoch'] + 1}/{start['epochs']}: {numbers}{'  (best so far)' if last['best'] else ''}")
    finally:
        if bar: bar.close() # before anybody says what went wrong
    return last

def finish(
    folder: Path,
    last: dict, # event of `fit`
    score: str, # what decided which weights are best
):
    "The end of a run: a figure beside the log, and where everything is."
    if not is_chief(): return
    from lesa_nb.engine.run import curves, read_log
    if any(event["kind"] == "step" for event in read_log(folder)): curves(folder, folder.name).savefig(folder/"curves.png", dpi=110)
    print(f"best {score} {last['best']:.2f}; {last['seconds']:.0f} s in this go; weights, log, curves and checkpoint are in {folder}")

def how_many_workers(
    asked: int | None, # None: the cores there are, shared
) -> int:
    "Processes that read ahead for each process that trains."
    if asked is not None: return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(0, cores//int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))

@dataclass
class RunOptions:
    "What a run can be told, whatever it learns."
    epochs: int | None = None
    "Instead of the recipe's."
    batch_size: int | None = None
    "Pictures in one step, all processes together, instead of the recipe's; the learning rate follows."
    accumulate: int | None = None
    "Parts that each process cuts its pictures of one step into: less memory, the same step."
    lr: float | None = None
    "Rate for as many pictures as the recipe says, instead of the recipe's."
    precision: Literal["float32", "bfloat16", "float64"] | None = None
    "Instead of the recipe's. float64 is slow, and there to compare runs."
    seed: int = 0
    "Decides first weights, order and what happens to each picture."
    resume: Literal["never", "auto"] = "never"
    "auto: go on where the folder's checkpoint stands, if there is one. never: refuse a folder that holds a run."
    stop_after: Annotated[int | None, arg(metavar="EPOCHS")] = None
    "End after so many epochs; the learning rate still goes by the recipe's."
    minutes: float = 15.
    "Between two checkpoints; each epoch ends with one, too."
    workers: int | None = None
    "Processes that read pictures ahead, for each process that trains. Default: the cores there are, shared."
    device: str | None = None
    "cpu, cuda or cuda:N. Default: a GPU if there is one."
    no_tensorboard: bool = False
    "Write no files for TensorBoard."

    def __post_init__(self):
        positive(epochs=self.epochs, batch_size=self.batch_size, accumulate=self.accumulate, stop_after=self.stop_after)
        if self.seed < 0 or self.minutes < 0 or (self.workers or 0) < 0: raise UsageError("--seed, --minutes and --workers must not be negative")
        self.workers = how_many_workers(self.workers)

    def changed(self,
        recipe,
        **more, # other numbers of the recipe; None leaves one as it is
    ): # -> Recipe
        "A recipe with what was asked for."
        return recipe.changed(epochs=self.epochs, batch_size=self.batch_size, accumulate=self.accumulate, lr=self.lr, precision=self.precision, **more)

    def train(self, task, recipe, out: Path, stop: Stop):
        "Run the loop, show it, and say where everything is."
        from lesa_nb.engine.run import fit
        board = importlib.util.find_spec("tensorboard") is not None and not self.no_tensorboard
        events = fit(task, recipe, out, seed=self.seed, resume=self.resume == "auto", until=self.stop_after, workers=self.workers, minutes=self.minutes,
                     device=self.device, stop=stop, tensorboard=board)
        finish(out, watched(events), task.score)

def train_imagenet(
    data: Annotated[Path, arg(metavar="DIR")],
    run: Annotated[RunOptions, OmitArgPrefixes],
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/imagenet"),
    recipe: Literal["published", "modern"] = "published",
    network: Literal["resnet50", "wrn50", "small"] = "resnet50",
    term: Literal["lesa", "attention", "conv"] = "lesa",
    position: Literal["flat", "factored"] = "flat",
    image_size: int = 224,
    augment: Literal["published", "jitter", "modern", "gentle"] | None = None,
    label_smoothing: float | None = None,
    cutmix: float | None = None,
    no_compile: bool = False,
    measure: bool = False,
) -> int:
    """Train a network on a folder of pictures in ImageNet's layout: train/CLASS/*.jpg and val/CLASS/*.jpg.

    With several GPUs: torchrun --nproc-per-node 8 -m lesa_nb.cli train imagenet --data DIR. SIGTERM and Ctrl-C save everything and end with
    status 143 and 130; the same command with --resume auto goes on from there, to the bit. A run cut off by force loses at most --minutes.

    Args:
        data: Folder that holds train/ and val/ with a folder for each class.
        run: What every run can be told.
        out: Folder of this run: checkpoint, weights, log, curves.
        recipe: published: 95 epochs, as in the paper. modern: 300 epochs with everything that came later.
        network: The published networks, or a small one for trying out.
        term: What takes the place of the 3x3 convolutions: LESA, or a control.
        position: Kind of position table. Detectors can start from factored ones only.
        image_size: Pixels of a side; the position tables are made for it.
        augment: Which random changes pictures go through, instead of the recipe's. jitter: the published ones and changes of colour.
        label_smoothing: Instead of the recipe's; the authors' option is 0.1.
        cutmix: Instead of the recipe's; 1 mixes in rectangles of any size.
        no_compile: Do not compile, even if the recipe does.
        measure: Do not train: measure what loading and the network do alone, and say which limits.
    """
    positive(image_size=image_size)
    with Stop() as stop: # listens while the rest is still being imported
        from lesa_nb.tasks.classify import find_recipe, imagenet_task, say_speeds, speeds
        from lesa_nb.engine.loop import say_recipe
        chosen = run.changed(find_recipe(recipe), augment=augment, label_smoothing=label_smoothing, cutmix=cutmix, compile=False if no_compile else None)
        task = imagenet_task(data, chosen, network=network, term=term, position=position, image_size=image_size, seed=run.seed)
        say(f"{network}, term {term}, {position} tables for {image_size} px, {len(task.train.classes):,} classes, seed {run.seed}, {run.workers} worker(s)")
        say(say_recipe(chosen, len(task.train), int(os.environ.get("WORLD_SIZE", 1))))
        if measure: say(say_speeds(speeds(task, chosen, workers=run.workers, device=run.device), run.workers))
        else: run.train(task, chosen, out, stop)
    return 0

def eval_imagenet(
    data: Annotated[Path, arg(metavar="DIR")],
    weights: Annotated[Path, arg(metavar="FILE")],
    image_size: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | None = None,
    out: Annotated[Path | None, arg(metavar="FILE.json")] = None,
) -> int:
    """Score weights on the validation pictures of a folder in ImageNet's layout.

    Args:
        data: Folder that holds val/, or the folders of the classes themselves.
        weights: A .safetensors of `lesa train`, or a .pth of the authors.
        image_size: Pixels of a side. Default: what the network was made for.
        batch_size: Pictures at once.
        workers: Processes that read pictures ahead.
        device: cpu, cuda or cuda:N. Default: a GPU if there is one.
        out: Also write the scores there.
    """
    positive(image_size=image_size, batch_size=batch_size)
    from tqdm import tqdm

    from lesa_nb.tasks.classify import load_classifier, score_folder
    classifier = load_classifier(weights)
    facts = classifier.facts
    say(f"{facts['network']}, term {facts['term']}, {facts['position']} tables for {facts['image_size']} px, from {weights}")
    scores = score_folder(classifier, data, image_size=image_size, batch_size=batch_size, workers=how_many_workers(workers),
                          device=device, watch=lambda batches: tqdm(batches, unit="batch", disable=not is_chief()))
    say(f"{scores['pictures']:,} pictures: top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, loss {scores['loss']:.4f}")
    if out and is_chief(): atomic_json(out, dict(scores, weights=str(weights), data=str(data)), what="the scores")
    return 0

def verify_imagenet(
    data: Annotated[Positional[Path], arg(metavar="DIR")],
    workers: int | None = None,
) -> int:
    """Read every picture of a folder in ImageNet's layout, and list what would stop training and what would not.

    Ends with status 1 if anything would.

    Args:
        data: Folder that holds train/ and val/.
        workers: Pictures that are read at the same time.
    """
    from lesa_nb.data.folders import verify_pictures
    report = verify_pictures(data, workers=workers)
    print(report)
    return 0 if report.ok else 1

def make_imagenet(
    out: Annotated[Positional[Path], arg(metavar="DIR")],
    task: Literal["twin", "corner", "both", "digits"] = "twin",
    train: int = 256,
    val: int = 64,
    size: int = 64,
    seed: int = 0,
) -> int:
    """Draw a small folder of pictures in ImageNet's layout, to try everything on.

    Args:
        out: Must not exist, or be empty.
        task: twin: which coloured mark is turned like the white one? corner: does the white mark point up? both: both. digits: real handwritten ones.
        train: Pictures of each class to train on.
        val: Pictures of each class to validate on.
        size: Pixels of the shorter side.
        seed: Another seed, other pictures.
    """
    positive(train=train, val=val)
    from lesa_nb.data.folders import make_digits, make_pictures
    folder = make_digits(out, size=size, seed=seed) if task == "digits" else make_pictures(out, task=task, train=train, val=val, size=size, seed=seed)
    print(f"{folder}: ready for lesa train imagenet --data {folder} --network small --image-size {size} --position factored")
    return 0

def export(
    weights: Annotated[Path, arg(metavar="FILE")],
    out: Annotated[Path, arg(metavar="FILE")],
    min_size: int = 64,
    max_size: int = 512,
) -> int:
    """Write a classifier for other runtimes: an ONNX file, or a program of torch.export. Any picture size in a range.

    Args:
        weights: A .safetensors of `lesa train`, or a .pth of the authors.
        out: Ends in .onnx or .pt2.
        min_size: Shortest side that the file must take.
        max_size: Longest side that the file must take.
    """
    if out.suffix not in (".onnx", ".pt2"): raise UsageError(f"--out must end in .onnx or .pt2, got {out}")
    if not 17 <= min_size < max_size: raise UsageError(f"--min-size must be at least 17 and less than --max-size, got {min_size} and {max_size}")
    from lesa_nb.tasks.classify import load_classifier
    classifier = load_classifier(weights)
    sizes = dict(image_size=min(max(classifier.facts["image_size"], min_size), max_size), min_size=min_size, max_size=max_size)
    if out.suffix == ".onnx":
        from lesa_nb.weights.folding import export_onnx
        with atomic_path(out, what="the network") as beside: export_onnx(classifier.model, beside, **sizes)
    else:
        import torch

        from lesa_nb.weights.folding import export_program
        with atomic_path(out, what="the network") as beside: torch.export.save(export_program(classifier.model, **sizes), beside)
    print(f"{out}: {classifier.facts['network']} for pictures of {min_size} to {max_size} pixels, normalised with ImageNet's mean and deviation")
    return 0

def train_coco(
    data: Annotated[Path, arg(metavar="DIR")],
    run: Annotated[RunOptions, OmitArgPrefixes],
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/coco"),
    model: Literal["mask_rcnn", "htc"] = "mask_rcnn",
    recipe: Literal["published", "modern"] = "published",
    size: Literal["published", "small"] = "published",
    start: Annotated[Path | None, arg(metavar="FILE")] = None,
    convert: Literal["drop", "slice"] | None = None,
    term: Literal["lesa", "attention", "conv"] = "lesa",
    image_size: int | None = None,
    no_semantic: bool = False,
    missing: Literal["error", "drop"] = "error",
) -> int:
    """Train a detector on a folder in COCO's layout: train2017, val2017, annotations and, for HTC, stuffthingmaps.

    With several GPUs: torchrun --nproc-per-node 8 -m lesa_nb.cli train coco --data DIR. SIGTERM and Ctrl-C save everything and end with
    status 143 and 130; the same command with --resume auto goes on from there, to the bit. A run cut off by force loses at most --minutes.

    Args:
        data: Folder in COCO's layout.
        run: What every run can be told.
        out: Folder of this run: checkpoint, weights, log, curves.
        model: Mask R-CNN on LESA-ResNet-50, or HTC on LESA-WRN-50.
        recipe: published: 20 epochs, as in the paper. modern: 50 epochs with large-scale jitter. A small detector has a recipe of its own.
        size: published, or small: for trying out on drawn pictures.
        start: ImageNet weights for the backbone: a .safetensors of lesa train imagenet --position factored, or a .pth of the authors.
        convert: What to do with flat position tables in them: drop or slice. Without it they are refused.
        term: What takes the place of the 3x3 convolutions: LESA, or a control.
        image_size: Pixels of a side; the position tables are made for it. Default: as published.
        no_semantic: HTC without stuff maps.
        missing: What to do about pictures that are not there.
    """
    positive(image_size=image_size)
    with Stop() as stop: # listens while the rest is still being imported
        from lesa_nb.tasks.detect import RECIPES, coco_task
        from lesa_nb.engine.loop import say_recipe
        chosen = run.changed(RECIPES["small" if size == "small" else model + "_modern"*(recipe == "modern")])
        task = coco_task(data, model=model, size=size, term=term, image_size=image_size, augment=chosen.augment, semantic=not no_semantic, start=start,
                         convert=convert, seed=run.seed, missing=missing, say=say)
        net = task.facts["net"]
        say(f"{model}, {size}, term {term}, pictures at {net['image_size']} px, {net['num_classes']} classes, seed {run.seed}, {run.workers} worker(s)")
        say(say_recipe(chosen, len(task.train), int(os.environ.get("WORLD_SIZE", 1)), frozen=True))
        run.train(task, chosen, out, stop)
    return 0

def _bar(results):
    "Results with a bar."
    from tqdm import tqdm
    return tqdm(results, unit="image")

def eval_coco(
    data: Annotated[Path, arg(metavar="DIR")],
    weights: Annotated[Path, arg(metavar="FILE")],
    split: str = "val2017",
    batch_size: int = 1,
    workers: int | None = None,
    device: str | None = None,
    out: Annotated[Path | None, arg(metavar="FILE.json")] = None,
) -> int:
    """Score a detector on a split of a COCO folder: boxes and masks, COCO's twelve numbers.

    Args:
        data: Folder in COCO's layout.
        weights: A .safetensors of lesa train coco, or a .pth of the authors.
        split: Which pictures.
        batch_size: Pictures at once.
        workers: Processes that read pictures ahead.
        device: cpu, cuda or cuda:N. Default: a GPU if there is one.
        out: Also write the scores there, with AP class by class.
    """
    positive(batch_size=batch_size)
    from lesa_nb.tasks.detect import evaluate_coco
    scores = evaluate_coco(data, weights, split=split, device=device, batch_size=batch_size, workers=how_many_workers(workers), watch=_bar)
    print(scores)
    if out:
        numbers = dict(box=scores.box, mask=scores.mask, classes={kind: scores.class_ap(kind) for kind in scores.precision}, weights=str(weights), data=str(data), split=split)
        finite = json.loads(json.dumps(numbers), parse_constant=lambda _: None) # where there was nothing to find, JSON has no nan
        atomic_json(out, finite, what="the scores")
    return 0

def verify_coco_folder(
    data: Annotated[Positional[Path], arg(metavar="DIR")],
    workers: int | None = None,
) -> int:
    """Read every annotation and open every picture of a COCO folder; say what would be left out of training and what would stop it.

    Ends with status 1 if anything would stop it.

    Args:
        data: Folder in COCO's layout.
        workers: Pictures that are read at the same time.
    """
    from lesa_nb.data.verify_coco import verify_coco
    report = verify_coco(data, workers=workers)
    print(report)
    return 0 if report.ok else 1

def make_coco_folder(
    out: Annotated[Positional[Path], arg(metavar="DIR")],
    train: int = 64,
    val: int = 16,
    test: int = 8,
    size: int = 160,
    seed: int = 0,
) -> int:
    """Draw a small folder in COCO's layout, with polygons, crowds, empty pictures and stuff maps, to try everything on.

    Args:
        out: Must not exist, or be empty.
        train: Pictures to train on.
        val: Pictures to validate on.
        test: Pictures without annotations.
        size: Pixels of the longer side.
        seed: Another seed, other pictures.
    """
    positive(train=train, val=val, test=test)
    from lesa_nb.data.drawn_coco import make_coco
    folder = make_coco(out, train=train, val=val, test=test, size=size, seed=seed)
    print(f"{folder}: ready for lesa train coco --data {folder} --size small")
    return 0

def export_testdev(
    data: Annotated[Path, arg(metavar="DIR")],
    weights: Annotated[Path, arg(metavar="FILE")],
    out: Annotated[Path, arg(metavar="FILE.json")] = Path("detections_test-dev2017_lesa_results.json"),
    split: str = "test-dev2017",
    batch_size: int = 1,
    workers: int | None = None,
    device: str | None = None,
) -> int:
    """Search COCO's test pictures and write the file that its server wants.

    Args:
        data: Folder in COCO's layout, with test2017 and annotations/image_info_test-dev2017.json.
        weights: A .safetensors of lesa train coco, or a .pth of the authors.
        out: The file; the server wants it zipped.
        split: Which pictures.
        batch_size: Pictures at once.
        workers: Processes that read pictures ahead.
        device: cpu, cuda or cuda:N. Default: a GPU if there is one.
    """
    positive(batch_size=batch_size)
    from lesa_nb.tasks import detect as detectors
    path = detectors.export_testdev(data, weights, out, split=split, device=device, batch_size=batch_size, workers=how_many_workers(workers), watch=_bar)
    print(f"{path}: {path.stat().st_size/1e6:.1f} MB, in the original category numbers, at most 100 detections for each picture")
    return 0
