"""The command `lesa`: every command by its name, and the one place that turns mistakes into sentences."""
import errno
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence

import tyro
from tyro.extras import SubcommandApp

from lesa_nb.cli import _usage, check, data, eval, exercise, export, predict, see, train
from lesa_nb.cli._common import UsageError, Work
from lesa_nb.cli._ending import deaf_at_the_end, ends_in_order, say_last
from lesa_nb.engine.group import is_main_process, process_name
from lesa_nb.engine.signals import Stopped

_DESCRIPTION = "LESA: locally enhanced self-attention, to learn from and to use. Every command has its own --help."

#: the commands of one word
_COMMANDS: dict[str, Callable] = {
    "check": check.check_machine,
    "demo": see.run_demo,
    "exercise": exercise.write_again,
    "explain": see.explain_photo,
    "explore": see.explore_photo,
    "export": export.export_network,
    "export-testdev": export.testdev_file,
    "predict": predict.predict_images,
}
#: the commands of two words: first word -> what it does, and the function behind each second word
_GROUPS: dict[str, tuple[str, dict[str, Callable]]] = {
    "train": (
        "Train a network or a detector; --resume auto goes on where a run was stopped.",
        dict(imagenet=train.train_imagenet, coco=train.train_coco),
    ),
    "eval": (
        "Score weights on validation pictures.",
        dict(imagenet=eval.eval_imagenet, coco=eval.eval_coco),
    ),
    "verify-data": (
        "Check a folder before training on it.",
        dict(imagenet=data.verify_imagenet, coco=data.verify_coco_folder),
    ),
    "make-data": (
        "Draw a small folder of pictures, to try everything on.",
        dict(imagenet=data.make_imagenet, coco=data.make_coco_folder),
    ),
}

#: what a user can do wrong
_MISTAKES = (UsageError, ValueError, OSError, ModuleNotFoundError, FloatingPointError, MemoryError)


def _is_memory(mistake: Exception) -> bool:
    "Whether torch had too little memory; on a CPU it says so in words only."
    return type(mistake).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(mistake)


def _is_full(mistake: Exception) -> bool:
    "Whether something could not be written to its end: the work was begun then."
    return getattr(mistake, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _later(function: Callable) -> Callable:
    "A command that is only chosen: it returns what is to be run, so that reading the words is one step of its own."

    @functools.wraps(function)
    def choose(*words, **options):
        return functools.partial(function, *words, **options)

    return choose


def _build_app() -> SubcommandApp:
    "All commands under their names."
    app = SubcommandApp()
    for first, (summary, functions) in _GROUPS.items():
        group = SubcommandApp()
        for second, function in functions.items():
            group.command(name=second)(_later(function))
        app.command(group, name=first, help=summary)
    for name, function in _COMMANDS.items():
        app.command(name=name)(_later(function))
    return app


def _choose(words: Sequence[str]) -> Callable[[], int | None]:
    "The command that these words ask for, with its options; words that make no sense are a UsageError."
    command = _usage.find_command(words, {name: list(second) for name, (_, second) in _GROUPS.items()}, [*_COMMANDS])
    _usage.refuse_empty(words)

    def read(words: Sequence[str]) -> Callable[[], int | None]:
        config = (tyro.conf.FlagCreatePairsOff,)
        return _build_app().cli(args=words, prog="lesa", description=_DESCRIPTION, config=config)

    return _usage.read_words(read, words, command)


def _sentence(mistake: Exception) -> str:
    "What a mistake says, on one line."
    words = str(mistake)
    if isinstance(mistake, OSError) and mistake.filename and mistake.strerror:  # the system's own, without a number
        words = f"{mistake.filename}: {mistake.strerror}"
    elif isinstance(mistake, OSError) and mistake.strerror:  # while it wrote to a file or a pipe that was open
        words = mistake.strerror
    return " ".join(words.split()) or type(mistake).__name__


def main(argv: list[str] | None = None) -> int:
    """Run one command; a mistake becomes one line on stderr. LESA_DEBUG=1 shows the traceback instead.

    `argv` are the words after `lesa`; None takes those of the command line. Returns the exit status: 0 fine; 1 the work
    was begun and something is wrong with it; 2 refused before anything was done; 130 interrupted; 143 taken away.
    """
    status = ends_in_order(lambda: _run(sys.argv[1:] if argv is None else argv))
    if argv is None:
        deaf_at_the_end()
    return status


def _run(words: Sequence[str]) -> int:
    "The exit status of a command."
    if "matplotlib" not in sys.modules:
        os.environ["MPLBACKEND"] = "Agg"  # figures go to files: no display is needed
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it can do without a home folder; no need to say so
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter
    Work.begun = False
    try:
        return _choose(words)() or 0
    except SystemExit as stop:  # help was asked for, and is written
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # the reader has seen enough, as in `lesa --help | head`
        return 1
    except Stopped as stopped:  # asked to end, and everything is saved
        if is_main_process():
            say_last(f"lesa: {stopped}")
        return stopped.status
    except (RuntimeError, *_MISTAKES) as mistake:
        if os.environ.get("LESA_DEBUG") or not (_is_memory(mistake) or isinstance(mistake, _MISTAKES)):
            raise
        if _is_memory(mistake):
            mistake = MemoryError(f"not enough memory; choose smaller pictures or batches ({mistake})")
        say_last(f"{process_name('lesa')}: {_sentence(mistake)}")
        failed = Work.begun or _is_full(mistake) or isinstance(mistake, (FloatingPointError, MemoryError))
        return 1 if failed and not isinstance(mistake, UsageError) else 2
