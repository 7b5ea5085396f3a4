"""`lesa train`: runs that are shown while they go, and that go on where they were stopped."""
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg

from lesa_nb.cli._common import (
    CocoPaths,
    UsageError,
    Work,
    check_image_size,
    check_seed,
    echo,
    positive,
    worker_count,
)
from lesa_nb.engine.group import is_main_process, world_size
from lesa_nb.engine.signals import Stop, Stopped

_NO_READER = 13  # SIGPIPE, which Python ignores and Windows lacks: the exit status is 141, as of other programs


class _Display:
    "A run while it goes: a bar with loss, rate and speed, a line for every validation."

    def __init__(self, speak: Callable[[str], None]):
        self.speak, self.bar, self.epochs, self.skipped = speak, None, 0, 0

    def start(self, event: dict) -> None:
        from tqdm import tqdm

        Work.begun = True
        where = "a new run"
        if event["resumed"]:
            where = f"resumed in epoch {event['epoch'] + 1} after step {event['step']} of {event['steps']}"
            if event["epoch"] >= event["epochs"]:
                where = "finished already"
        self.speak(
            f"{where}: {event['samples']:,} images to train on, {event['valid']:,} to validate, "
            f"{event['parameters']:,} parameters, {event['processes']} process(es) on {event['device']}"
        )
        if event.get("not_deterministic") and event["device"].startswith("cuda"):
            self.speak(
                f"--deterministic: {', '.join(event['not_deterministic'])} have no deterministic form on a GPU, so two "
                "runs of this network differ in their last digits there; all other operators are deterministic"
            )
        self.epochs = event["epochs"]
        is_file = not sys.stderr.isatty()  # a file gets a line now and then instead of a bar
        self.bar = tqdm(
            total=event["epochs"] * event["steps"],
            initial=event["epoch"] * event["steps"] + event["step"],
            unit="step",
            disable=not is_main_process(),
            mininterval=20 if is_file else 0.5,
            dynamic_ncols=not is_file,
        )

    def step(self, event: dict) -> None:
        assert self.bar is not None
        speed = f"{event['images_per_second']:.0f} images/s, waiting {event['waiting']:.0%}"
        self.bar.set_description(f"epoch {event['epoch'] + 1}/{self.epochs}", refresh=False)
        self.bar.set_postfix_str(f"loss {event['loss']:.3f}, rate {event['lr']:.3g}, {speed}", refresh=False)
        self.bar.update()
        if event.get("skipped", 0) > self.skipped:
            self.bar.clear()
            self.speak(
                f"epoch {event['epoch'] + 1}, step {event['step']}: a gradient overflowed in float16, so the step was "
                f"left out and the loss's scale halved to {event['loss_scale']:,.0f}; left out so far: "
                f"{event['skipped']}"
            )
        self.skipped = event.get("skipped", 0)

    def valid(self, event: dict) -> None:
        assert self.bar is not None
        self.bar.clear()
        scores = ", ".join(f"{name} {value:.2f}" for name, value in event["scores"].items())
        self.speak(f"epoch {event['epoch'] + 1}/{self.epochs}: {scores}{'  (best so far)' if event['best'] else ''}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def show_progress(
    events: Iterable[dict], *, speak: Callable[[str], None] = echo, stop: Stop | None = None
) -> dict:
    """Show a run while it goes; returns the last event.

    `events` come from `fit`; `speak` gets the lines. The bar counts the steps of the whole run, so its estimate is the
    end of the run and not of an epoch. `stop` is the run's: it is asked to end, with everything saved, where nobody can
    be told any more, since a reader has gone or the disk behind `>` is full. Without it the error ends the run.
    """
    display, last = _Display(speak), {}
    unheard: OSError | None = None
    try:
        for last in events:
            show = {"start": display.start, "step": display.step, "valid": display.valid}.get(last["kind"])
            if show and not unheard:
                try:
                    show(last)
                except OSError as error:
                    if stop is None:
                        raise
                    unheard, stop.number = error, stop.number or _NO_READER
    except Stopped as stopped:
        if unheard:
            why = f"what it says could not be written ({unheard.strerror})"
            raise Stopped(f"{why}, so it {stopped}", _NO_READER) from None
        raise
    finally:
        with contextlib.suppress(OSError):
            display.close()  # before anybody says what went wrong
    return last


def _finish(folder: Path, last: dict, score: str) -> None:
    "The end of a run: a figure beside the log, and where everything is. `score` decided which weights are best."
    if not is_main_process():
        return
    from lesa_nb.engine.log import read_log
    from lesa_nb.io.atomic import atomic_path
    from lesa_nb.look.curves import curves

    events = read_log(folder)
    if any(event["kind"] == "step" for event in events):
        with atomic_path(folder / "curves.png", what="the curves") as beside:
            curves(events, folder.name).savefig(beside, dpi=110, format="png")
    files = f"weights, log, curves and checkpoint are in {folder}"
    print(f"best {score} {last['best']:.2f}; {last['seconds']:.0f} s in this go; {files}")


@dataclass
class RunOptions:
    "What a run can be told, whatever it learns."

    epochs: int | None = None
    "Instead of the recipe's."
    batch_size: int | None = None
    """Pictures in one step, all processes together, instead of the recipe's; the learning rate follows. Where there are
    fewer pictures, a step takes them all."""
    accumulate: int | None = None
    "Micro-batches that each process cuts its images of one step into: less memory, the same step."
    lr: float | None = None
    "Rate for as many pictures as the recipe says, instead of the recipe's."
    precision: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    """Instead of the recipe's. float16 is for GPUs without bfloat16: its loss is scaled. float64 is slow, and there to
    compare runs."""
    tf32: bool = False
    "On a GPU, float32 products with 11 bits for each number: several times faster."
    deterministic: bool = False
    """PyTorch's deterministic operators: the same run again gives the same bits on a GPU, too. Slower. Detectors hold
    operators without such a form, which are named."""
    seed: int = 0
    "Decides first weights, order and what happens to each picture."
    resume: Literal["never", "auto"] = "never"
    "auto: go on where the folder's checkpoint stands, if there is one. never: refuse a folder that holds a run."
    accept_changed_data: bool = False
    "With --resume auto: go on although images were added, removed or renamed."
    accept_changed_recipe: bool = False
    """With --resume auto: go on with other numbers of the recipe than the run began with, such as --lr, --accumulate,
    --epochs or --precision; not with another batch size."""
    stop_after: Annotated[int | None, arg(metavar="EPOCHS")] = None
    "End after so many epochs; the learning rate still goes by the recipe's."
    minutes: float = 15.0
    "Between two checkpoints; each epoch ends with one, too."
    workers: int | None = None
    "Processes that read pictures ahead, for each process that trains. Default: the cores there are, shared."
    device: str | None = None
    "cpu, cuda or cuda:N. Default: a GPU if there is one."
    no_tensorboard: bool = False
    "Write no files for TensorBoard."

    def __post_init__(self) -> None:
        positive(
            epochs=self.epochs, batch_size=self.batch_size, accumulate=self.accumulate, stop_after=self.stop_after
        )
        check_seed(self.seed)
        if not self.minutes >= 0:
            raise UsageError(f"--minutes must not be negative, got {self.minutes}")
        worker_count(self.workers)  # refuses what cannot be

    def check_start(self, start: Path | None, out: Path) -> None:
        "A run can go on without the file that it began with, if that has gone."
        if start is not None and not start.exists() and self.resume == "auto" and (out / "last.pt").exists():
            raise FileNotFoundError(
                f"{start}: no such file; the run in {out} goes on without what it started from: leave --start out"
            )

    @property
    def readers(self) -> int:
        "Processes that read pictures ahead: what was asked for, or the cores there are, shared."
        return worker_count(self.workers)

    def changed(self, recipe: Any, **more: Any) -> Any:
        "A recipe with what was asked for; `more` are other numbers of it, where None leaves one as it is."
        return recipe.changed(
            epochs=self.epochs,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            lr=self.lr,
            precision=self.precision,
            tf32=self.tf32 or None,
            deterministic=self.deterministic or None,
            **more,
        )

    def train(self, task: Any, out: Path, stop: Stop) -> None:
        "Run the loop, show it, and say where everything is."
        from lesa_nb.engine.run import fit

        board = importlib.util.find_spec("tensorboard") is not None and not self.no_tensorboard
        events = fit(
            task,
            out,
            seed=self.seed,
            resume=self.resume == "auto",
            accept_changed_data=self.accept_changed_data,
            accept_changed_recipe=self.accept_changed_recipe,
            until=self.stop_after,
            workers=self.readers,
            minutes=self.minutes,
            device=self.device,
            stop=stop,
            tensorboard=board,
        )
        _finish(out, show_progress(events, stop=stop), task.score)


def train_imagenet(
    data: Annotated[Path, arg(metavar="DIR")],
    run: Annotated[RunOptions, OmitArgPrefixes],
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/imagenet"),
    recipe: Literal["published", "modern"] = "published",
    network: Literal["resnet50", "wrn50", "small"] = "resnet50",
    start: Annotated[Path | None, arg(metavar="FILE")] = None,
    graft: bool = False,
    term: Literal["lesa", "attention", "conv"] = "lesa",
    position: Literal["flat", "factored"] | None = None,
    image_size: int = 224,
    augment: Literal["published", "jitter", "modern", "gentle"] | None = None,
    label_smoothing: float | None = None,
    cutmix: float | None = None,
    val_fraction: float | None = None,
    no_compile: bool = False,
    measure: bool = False,
) -> int:
    """Train a network on a folder of pictures in ImageNet's layout: train/CLASS/*.jpg and val/CLASS/*.jpg.

    With several GPUs: torchrun --nproc-per-node 8 -m lesa_nb.cli train imagenet --data DIR. SIGTERM, Ctrl-C and
    a closed terminal save everything and end with status 143, 130 and 129; the same command with --resume auto goes on
    from there, to the bit (on a GPU: with --deterministic).
    A run cut off by force loses at most --minutes.

    Args:
        data: Folder that holds train/ and val/ (or valid/, validation/, test/) with a folder for each class. Pictures
            are turned upright by their EXIF notes, as a person sees them; so does eval.
            With --val-fraction: the folders of the classes themselves.
        run: What every run can be told.
        out: Folder of this run: checkpoint, weights, log, curves.
        recipe: published: 95 epochs, as in the paper. modern: 300 epochs with everything that came later.
        network: The published networks, or a small one for trying out.
        start: Trained weights to begin with: a .safetensors or last.pt of lesa train, a .pth of the authors, or a
            ResNet of torchvision or timm (.pth, .safetensors), whose LESA layers start afresh. Other classes get a new
            head, another image size fits the position tables; a table says what became of every tensor.
        graft: The ResNet in --start becomes a LESA network that computes the same, to the bit, and learns on from
            there; --network is left out then.
        term: What takes the place of the 3x3 convolutions: LESA, or a control.
        position: Kind of position table. Detectors can start from factored ones only. Default: flat, as published;
            factored for small and grafted networks.
        image_size: Pixels of a side; the position tables are made for it.
        augment: Which random changes pictures go through, instead of the recipe's.
            jitter: the published ones and changes of colour.
        label_smoothing: Instead of the recipe's; the authors' option is 0.1.
        cutmix: Instead of the recipe's; 1 mixes in rectangles of any size.
        val_fraction: Part of each class that validates, where no folder holds what validates. A hash of each file's
            name decides, so that pictures that you add move no others.
        no_compile: Do not compile, even if the recipe does.
        measure: Do not train: measure what loading and the network do alone, and say which limits.
    """
    check_image_size(image_size)
    run.check_start(start, out)
    if graft and (start is None or network != "resnet50" or term != "lesa"):
        raise UsageError("--graft makes the network of the ResNet in --start FILE: give one, no --network or --term")
    with Stop() as stop:  # listens while the rest is still being imported
        from lesa_nb.data.listing import case_twins, describe_split
        from lesa_nb.engine.recipe import describe_recipe
        from lesa_nb.tasks.classify import classification_task, find_recipe
        from lesa_nb.tasks.speed import describe_speeds, speeds

        changes = dict(augment=augment, label_smoothing=label_smoothing, cutmix=cutmix)
        chosen = run.changed(find_recipe(recipe), compile=False if no_compile else None, **changes)
        task: Any = classification_task(
            data,
            chosen,
            network=network,
            term=term,
            position=position,
            image_size=image_size,
            seed=run.seed,
            val_fraction=val_fraction,
            start=start,
            graft=graft,
            say=echo,
        )
        echo(
            f"{task.metadata['network']}, term {term}, {task.metadata['position']} tables for {image_size} px, "
            f"{len(task.train.classes):,} classes, "
            f"seed {run.seed}, {run.readers} worker(s)"
        )
        echo(describe_split(len(task.train), len(task.valid), task.train.skipped, val_fraction))
        for one, other in case_twins(task.train.classes):
            echo(f"classes {one!r} and {other!r} differ in case only: two here, one on file systems that ignore case")
        echo(describe_recipe(task.recipe, len(task.train), world_size()))
        if measure:
            echo(describe_speeds(speeds(task, workers=run.readers, device=run.device), run.readers))
        else:
            run.train(task, out, stop)
    return 0


def train_coco(
    data: Annotated[Path | None, arg(metavar="DIR")] = None,
    *,
    run: Annotated[RunOptions, OmitArgPrefixes],
    paths: Annotated[CocoPaths, OmitArgPrefixes] = CocoPaths(),
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/coco"),
    model: Literal["mask_rcnn", "htc"] = "mask_rcnn",
    recipe: Literal["published", "modern"] = "published",
    network: Literal["published", "small"] = "published",
    start: Annotated[Path | None, arg(metavar="FILE")] = None,
    convert: Literal["drop", "slice"] | None = None,
    term: Literal["lesa", "attention", "conv"] = "lesa",
    image_size: int | None = None,
    no_semantic: bool = False,
    missing: Literal["error", "drop"] = "error",
) -> int:
    """Train a detector on a folder of pictures and COCO annotations; for HTC with stuffthingmaps, or --no-semantic.

    With several GPUs: torchrun --nproc-per-node 8 -m lesa_nb.cli train coco --data DIR. SIGTERM, Ctrl-C and
    a closed terminal save everything and end with status 143, 130 and 129; the same command with --resume auto goes on
    from there, to the bit (on a GPU: but for last digits).
    A run cut off by force loses at most --minutes.

    Args:
        data: Folder in COCO's own layout, or as Roboflow, CVAT, labelme and label-studio export COCO. Where no object
            has a mask, the detector learns boxes only.
        run: What every run can be told.
        paths: Where the set lies otherwise, and how it is split.
        out: Folder of this run: checkpoint, weights, log, curves.
        model: Mask R-CNN on LESA-ResNet-50, or HTC on LESA-WRN-50.
        recipe: published: 20 epochs, as in the paper. modern: 50 epochs with large-scale jitter.
            A small detector has a recipe of its own.
        network: published, or small: for trying out on drawn pictures.
        start: Weights of a classifier for the backbone, or of a detector for all that fits: a .safetensors or last.pt
            of lesa train (imagenet --position factored, or coco), a .pth of the authors, a ResNet or Mask R-CNN of
            torchvision. A table says what became of every tensor.
        convert: What to do with flat position tables in a classifier: drop or slice. Without it they are refused.
        term: What takes the place of the 3x3 convolutions: LESA, or a control.
        image_size: Pixels of a side; the position tables are made for it. Default: as published.
        no_semantic: HTC without stuff maps.
        missing: What to do about pictures that are not there.
    """
    check_image_size(image_size)
    run.check_start(start, out)
    with Stop() as stop:  # listens while the rest is still being imported
        from lesa_nb.engine.recipe import describe_recipe
        from lesa_nb.tasks.detect import DETECTION_RECIPES, detection_task

        name = "small" if network == "small" else model + "_modern" * (recipe == "modern")
        chosen = run.changed(DETECTION_RECIPES[name])
        layout = paths.layout(data)
        echo(layout)
        task: Any = detection_task(
            layout,
            chosen,
            model=model,
            network=network,
            term=term,
            image_size=image_size,
            semantic=not no_semantic,
            start=start,
            convert=convert,
            seed=run.seed,
            missing=missing,
            say=echo,
        )
        net = task.metadata["net"]
        echo(
            f"{model}, {network}, term {term}, pictures at {net['image_size']} px, {net['num_classes']} classes, "
            f"seed {run.seed}, {run.readers} worker(s)"
        )
        echo(describe_recipe(task.recipe, len(task.train), world_size(), frozen=True))
        run.train(task, out, stop)
    return 0
