"""Files and folders that appear when they are complete, or not at all.

Everything is written beside its target, flushed to the disk, and renamed into place: a step that the file system
makes in one go. A crash, a full disk or an exception leaves the old content as it was.
"""
from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Any, cast

__all__ = ["atomic_path", "atomic_write", "errors_at_the_end", "atomic_text", "atomic_json", "atomic_folder"]

_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what was written has not arrived

def _flush(path: str | PathLike) -> None:
    """Push a file, or the names in a folder, from the system's memory to the disk.

    Raises:
        OSError: The disk did not take the content of the file: a network's file system says so only now.
    """
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return  # a system that does not open folders
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno in _LOST and not os.path.isdir(path):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        # others: a file system that cannot be asked
    finally:
        os.close(number)


def _could_not_be_written(error: OSError, path: Path, beside: Path, what: str, advice: str) -> str | None:
    """A sentence about the error that says what was kept; None if it is one already, or about another file."""
    if error.strerror is None or error.filename not in (None, str(beside), str(path)):
        return None
    kept = "the one before it is intact" if path.exists() else "there is none yet"
    advice = advice or "Make room, or choose another place"
    return f"{path}: {what} could not be written ({error.strerror}); {kept}. {advice}"


@contextlib.contextmanager
def atomic_path(path: str | PathLike, *, what: str = "the file", advice: str = "") -> Iterator[Path]:
    """A name beside `path` to write to, for functions that open their files themselves.

    When the block ends, the file of that name is flushed and takes the name `path`, replacing what was there; if the
    block raises, it is removed and `path` stays as it was. A link is followed; a device or a pipe is written directly.

    Args:
        path: The file that shall appear. Its folder must exist.
        what: What the file is, for the error's sentence.
        advice: What to do if it cannot be written.

    Raises:
        OSError: The file cannot be written; the sentence says why, and that the one before it is intact.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # one that could be followed has been
        raise OSError(errno.ELOOP, f"{what} cannot be written to a link that leads to itself; choose another place",
                      str(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target
        return
    beside = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        beside.touch()  # what cannot be written is known before any work is done
        mode = (target if target.is_file() else beside).stat().st_mode
        beside.unlink()
        yield beside
        with contextlib.suppress(OSError):  # a file system without modes
            os.chmod(beside, stat.S_IMODE(mode))  # as `open` would leave it; safetensors writes for the owner only
        _flush(beside)
        os.replace(beside, target)
        _flush(target.parent)
    except OSError as error:
        sentence = _could_not_be_written(error, path, beside, what, advice)
        if sentence is None:
            raise
        told = OSError(sentence)
        told.errno = error.errno  # what went wrong can still be asked for: a full disk is no wrong use
        raise told from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(
    path: str | PathLike, mode: str = "wb", *, what: str = "the file", advice: str = ""
) -> Iterator[IO[Any]]:
    """An open file that takes the name `path` when the block ends without an error; see `atomic_path`.

    Args:
        path: The file that shall appear. Its folder must exist.
        mode: "wb" for bytes, "w" for text in UTF-8.
        what: What the file is, for the error's sentence.
        advice: What to do if it cannot be written.

    Raises:
        OSError: The file cannot be written; the sentence says why, and that the one before it is intact.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be wb or w, got {mode!r}")
    with atomic_path(path, what=what, advice=advice) as beside:
        with open(beside, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file


class _Patient(io.RawIOBase):
    """Takes all that is written and keeps the first error of the disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._attempt(self.file.write, data)
        return len(data)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._attempt(self.file.seek, place, whence)
        return place

    def flush(self) -> None:
        self._attempt(self.file.flush)

    def _attempt(self, step: Callable[..., Any], *arguments: Any) -> None:
        if self.error is None:
            try:
                step(*arguments)
            except OSError as error:
                self.error = error


@contextlib.contextmanager
def errors_at_the_end(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """`file` for PyTorch's writers of archives; what the disk refuses is raised when the block ends.

    They end an archive in a destructor: an exception of `file.write` there ends the whole process.

    Raises:
        OSError: The first that writing raised.
    """
    writer = _Patient(file)
    yield cast("IO[bytes]", writer)
    writer.flush()
    if writer.error:
        raise writer.error


def atomic_text(path: str | PathLike, text: str, *, what: str = "the file", advice: str = "") -> Path:
    """Write a text in UTF-8, all of it or nothing; returns the path."""
    with atomic_write(path, "w", what=what, advice=advice) as file:
        file.write(text)
    return Path(path)


def atomic_json(path: str | PathLike, thing: Any, *, indent: int | None = 1, what: str = "the file") -> Path:
    """Write what JSON can hold, all of it or nothing, in UTF-8: names in any script stay readable; returns the path.
    What it cannot hold changes no file."""
    text = json.dumps(thing, indent=indent, ensure_ascii=False)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        text = json.dumps(thing, indent=indent)  # names of files that are no text stand as escapes
    return atomic_text(path, text, what=what)


def _printable(path: Path) -> str:
    """A path that can always be printed."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def atomic_folder(path: str | PathLike) -> Iterator[Path]:
    """A folder to write into that gets the name `path` when the block ends; if the block raises, nothing of it stays.

    Args:
        path: The folder that shall appear. It must not exist, or be empty.

    Raises:
        FileExistsError: Something of that name is there, and it is not an empty folder.
    """
    folder = Path(os.path.abspath(path))
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{_printable(Path(path))}: exists already and is not empty; choose another folder")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for root, _, names in os.walk(part):
            for name in names:
                _flush(os.path.join(root, name))
            _flush(root)
        if folder.exists():
            folder.rmdir()
        os.replace(part, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
