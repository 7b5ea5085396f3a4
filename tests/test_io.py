"""Files and folders appear when they are complete, or not at all; files of tensors are read without running code."""
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import processes
import pytest
import torch

from lesa_nb.io.atomic import atomic_folder, atomic_json, atomic_path, atomic_text, atomic_write
from lesa_nb.io.tensors import identical, read_metadata, read_pth, read_tensors, save_pth, save_tensors


@contextmanager
def full_disk(limit=20_000):
    "As if the disk were full: no file may grow beyond the limit."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path/"a file; with signs \u00e4.txt"
    with atomic_write(path, "w") as file:
        file.write("one")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "one"
    with pytest.raises(KeyError):
        with atomic_write(path) as file:
            file.write(b"two")
            raise KeyError("in the middle")
    assert path.read_text(encoding="utf-8") == "one" and os.listdir(tmp_path) == [path.name]
    assert atomic_text(path, "\u00e4") == path and path.read_bytes() == "\u00e4".encode()
    with pytest.raises(ValueError, match="mode must be wb or w"):
        with atomic_write(path, "a"):
            pass


@pytest.mark.fault("R7")
@pytest.mark.parametrize("write", [
    lambda path: atomic_text(path, "x"*99_999),
    lambda path: save_tensors(dict(x=torch.ones(99_999)), path, {}),
    lambda path: save_pth(dict(x=torch.ones(99_999)), path)], ids=["text", "tensors", "pth"])
def test_a_full_disk_keeps_the_old_file(tmp_path, write):
    path = tmp_path/"file"
    for before, kept in ((None, "there is none yet"), ("old", "the one before it is intact")):
        if before:
            path.write_text(before)
        with full_disk(), pytest.raises(OSError, match=rf"file: the .*could not be written \(.*\); {kept}"):
            write(path)
        assert sorted(os.listdir(tmp_path)) == (["file"] if before else [])
    assert path.read_text() == "old"


def test_the_error_of_a_full_disk_can_be_told_from_others(tmp_path):
    with full_disk(), pytest.raises(OSError, match="inner: the file could not be written") as caught:
        with atomic_path(tmp_path/"outer"):
            atomic_text(tmp_path/"inner", "x"*99_999)
    assert caught.value.errno == errno.EFBIG and not os.listdir(tmp_path)


def test_an_error_of_something_else_is_not_told_as_an_error_of_writing(tmp_path):
    for error in (FileNotFoundError(2, "No such file", "picture.jpg"), OSError("image file is truncated")):
        with pytest.raises(OSError) as caught:
            with atomic_write(tmp_path/"out"):
                raise error
        assert caught.value is error
    with pytest.raises(OSError, match="gone/out: the page could not be written .*none yet. Make the folder"):
        atomic_text(tmp_path/"gone"/"out", "x", what="the page", advice="Make the folder")
    (tmp_path/"folder").mkdir()
    with pytest.raises(OSError, match="folder: the file could not be written"):
        atomic_text(tmp_path/"folder", "x")
    assert os.listdir(tmp_path) == ["folder"]


def test_json_that_cannot_be_written_changes_nothing(tmp_path):
    path = atomic_json(tmp_path/"a.json", dict(a=[1, 2]))
    with pytest.raises(TypeError):
        atomic_json(path, dict(a=object()))
    assert json.loads(path.read_text()) == dict(a=[1, 2]) and os.listdir(tmp_path) == ["a.json"]


def test_links_are_followed_and_devices_written_directly(tmp_path):
    (tmp_path/"real").write_text("old")
    (tmp_path/"link").symlink_to("real")
    atomic_text(tmp_path/"link", "new")
    assert (tmp_path/"link").is_symlink() and (tmp_path/"real").read_text() == "new"
    atomic_text("/dev/null", "x")
    assert not os.path.isfile("/dev/null")
    (tmp_path/"new").symlink_to("not yet")
    atomic_text(tmp_path/"new", "made")
    assert (tmp_path/"not yet").read_text() == "made" and (tmp_path/"new").is_symlink()
    (tmp_path/"loop").symlink_to("loop")
    with pytest.raises(OSError, match="a link that leads to itself; choose another place"):
        atomic_text(tmp_path/"loop", "x")
    assert (tmp_path/"loop").is_symlink()


@pytest.mark.fault("R7")
def test_everything_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    happened = []
    fsync, replace = os.fsync, os.replace

    def name(number):
        return Path(os.readlink(f"/proc/self/fd/{number}")).name

    monkeypatch.setattr(os, "fsync", lambda number: (happened.append(("flush", name(number))), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append(("rename", Path(b).name)), replace(a, b)))
    part = f"x.{os.getpid()}.part"
    for write in (lambda path: atomic_text(path, "x"), lambda path: save_pth({}, path),
                  lambda path: save_tensors({}, path, {})):
        happened.clear()
        write(tmp_path/"x")
        assert happened == [("flush", part), ("rename", "x"), ("flush", tmp_path.name)]
    happened.clear()
    with atomic_folder(tmp_path/"f") as folder:
        (folder/"inner").mkdir()
        (folder/"inner"/"a").write_text("a")
    assert happened == [("flush", "f.part"), ("flush", "a"), ("flush", "inner"), ("rename", "f"),
                        ("flush", tmp_path.name)]


def test_a_disk_that_says_only_at_the_end_that_it_did_not_take_it_keeps_the_old_file(tmp_path, monkeypatch):
    path = atomic_text(tmp_path/"x", "old")
    fsync, wrong = os.fsync, [errno.EIO]

    def refuse(number):
        if os.path.isfile(f"/proc/self/fd/{number}"):
            raise OSError(wrong[0], os.strerror(wrong[0]))
        fsync(number)

    monkeypatch.setattr(os, "fsync", refuse)
    for wrong[0] in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
        for write in (lambda: atomic_text(path, "new"), lambda: save_tensors({}, path, {})):
            with pytest.raises(OSError, match="could not be written .*the one before it is intact") as caught:
                write()
            assert caught.value.errno == wrong[0]
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]
    wrong[0] = errno.EINVAL  # a file system that cannot be asked
    assert atomic_text(path, "new").read_text() == "new"


def test_a_disk_or_a_memory_that_fails_is_not_told_as_a_damaged_file(tmp_path, monkeypatch):
    save_pth(dict(step=1), tmp_path/"last.pt")

    def fails(error):
        def load(*_, **__):
            raise error
        monkeypatch.setattr(torch, "load", load)

    fails(OSError(errno.ESTALE, "Stale file handle"))
    with pytest.raises(OSError, match="last.pt") as caught:
        read_pth(tmp_path/"last.pt")
    assert "Stale" in str(caught.value) and "may be whole" in str(caught.value)
    fails(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes."))
    with pytest.raises(MemoryError, match="last.pt: not enough memory to read its 0 MiB"):
        read_pth(tmp_path/"last.pt")
    fails(OSError(errno.EINVAL, "Invalid argument"))  # a zip file of foreign bytes may end so
    with pytest.raises(ValueError, match="expected a checkpoint"):
        read_pth(tmp_path/"last.pt")


def test_functions_that_open_their_files_themselves(tmp_path):
    with atomic_path(tmp_path/"a.bin") as beside:
        assert beside.parent == tmp_path
        beside.write_bytes(b"content")
    assert (tmp_path/"a.bin").read_bytes() == b"content" and os.listdir(tmp_path) == ["a.bin"]
    with pytest.raises(OSError, match="a.bin: the file could not be written .*the one before it is intact"):
        with atomic_path(tmp_path/"a.bin"):
            pass  # nobody wrote anything


def test_a_folder_appears_when_it_is_complete(tmp_path):
    (tmp_path/"new.part").mkdir()
    (tmp_path/"new.part"/"left over").touch()
    with atomic_folder(tmp_path/"new") as folder:
        (folder/"a").touch()
        assert not (tmp_path/"new").exists()
    assert os.listdir(tmp_path) == ["new"] and os.listdir(tmp_path/"new") == ["a"]
    with pytest.raises(FileExistsError, match="new: exists already and is not empty; choose another folder"):
        with atomic_folder(tmp_path/"new"):
            pass
    with pytest.raises(KeyError):
        with atomic_folder(tmp_path/"other") as folder:
            (folder/"a").touch()
            raise KeyError
    (tmp_path/"empty").mkdir()
    with atomic_folder(tmp_path/"empty") as folder:
        (folder/"b").touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "new"]


@pytest.mark.fault("R7")
def test_killed_while_writing(tmp_path):
    code = """
import os, signal, sys
from lesa_nb.io.atomic import atomic_write
with atomic_write(sys.argv[1], "w") as file:
    file.write("new"*9999)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path/"x").write_text("old")
    done = subprocess.run([sys.executable, "-c", code, tmp_path/"x"], timeout=60,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})
    assert done.returncode == -signal.SIGKILL and (tmp_path/"x").read_text() == "old"


def test_tensors_and_their_metadata(tmp_path):
    path = tmp_path/"weights.safetensors"
    tensors = dict(a=torch.randn(3, 2).T, n=torch.tensor(4))
    save_tensors(tensors, path, dict(kind="classifier", classes=["cat", "dog"], score=81.5))
    assert read_metadata(path) == dict(kind="classifier", classes=["cat", "dog"], score=81.5)
    found = read_tensors(path)
    assert found.keys() == tensors.keys() and all(found[k].equal(tensors[k]) for k in tensors)
    for read in (read_metadata, read_tensors):
        with pytest.raises(FileNotFoundError, match="gone: no such file"):
            read(tmp_path/"gone")
        (tmp_path/"text").write_text("no weights")
        with pytest.raises(ValueError, match="text: not a safetensors file"):
            read(tmp_path/"text")
    from safetensors.torch import save_file
    save_file(tensors | dict(a=torch.ones(2)), tmp_path/"bare")
    with pytest.raises(ValueError, match="bare: the file says nothing about its network"):
        read_metadata(tmp_path/"bare")
    for odd in ("[1]", "no json"):
        save_file(dict(a=torch.ones(2)), tmp_path/"odd", metadata=dict(metadata=odd))
        with pytest.raises(ValueError, match="odd: expected its metadata to be a JSON object, found"):
            read_metadata(tmp_path/"odd")


class Runs:
    "A thing that would run code when it is unpickled."

    def __reduce__(self):
        return print, ("never printed",)


def test_reading_runs_no_code(tmp_path, capsys):
    path = tmp_path/"last.pt"
    save_pth(dict(step=1, weights=torch.ones(3), names=["a"]), path)
    assert read_pth(path)["step"] == 1
    torch.save(dict(metadata=Runs()), path)
    with pytest.raises(ValueError, match=r"refused .*last.pt: unpickling it would run code, it asks for print"):
        read_pth(path)
    assert "never" not in capsys.readouterr().out
    for content in (b"PK torn", b"<html>", bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot read .*last.pt: expected a checkpoint written by torch.save"):
            read_pth(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="expected a .pt file, found an empty one"):
        read_pth(path)
    with pytest.raises(ValueError, match="found a folder; name the file inside it"):
        read_pth(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*gone"):
        read_pth(tmp_path/"gone")


def test_weights_of_a_network(tmp_path):
    from torch import nn

    from lesa_nb.weights.files import load_weights, save_weights
    tiny = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 10))
    path = tmp_path/"tiny.safetensors"
    save_weights(tiny, path, classes=10, score=.5)
    assert read_metadata(path) == dict(classes=10, score=.5) and os.listdir(tmp_path) == ["tiny.safetensors"]
    again = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 10))
    assert load_weights(again, path) is again
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in tiny.state_dict().items())
    with pytest.raises(ValueError, match="weights of another network; 2 names or shapes differ: 0.bias, 0.weight"):
        load_weights(nn.Sequential(nn.Conv2d(1, 8, 5), *tiny[1:]), path)
    (tmp_path/"text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_weights(again, tmp_path/"text.safetensors")
    with pytest.raises(OSError, match="gone.*: the weights could not be written .*none yet"):
        save_weights(tiny, tmp_path/"gone"/"tiny.safetensors")


def test_a_file_of_tensors_is_for_everybody_that_other_files_are_for(tmp_path):
    (tmp_path / "plain").touch()
    save_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "a.safetensors").chmod(0o600)  # whoever closed it, keeps it closed
    save_tensors({"a": torch.ones(2)}, tmp_path / "a.safetensors", {})
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_written_is_known_before_the_work(tmp_path):
    with pytest.raises(OSError, match="could not be written"), atomic_path(tmp_path / "gone" / "file"):
        raise AssertionError("the work began")


def test_a_file_that_may_not_be_read_is_there(tmp_path, monkeypatch):
    save_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {})
    monkeypatch.setattr("os.access", lambda *args: False)
    for read in (read_tensors, read_metadata):
        with pytest.raises(PermissionError, match="may not be read"):
            read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("room", [0, 1, 64, 100, 1000, 3000, 20_000])
def test_a_disk_that_is_full_anywhere_in_a_checkpoint_is_an_error_and_no_abort(tmp_path, room):
    "PyTorch's writer ends the process where a file that it was given raises in the end of the archive."
    code = """
import resource, sys, torch
from lesa_nb.io.tensors import save_pth
content = dict(model=dict(a=torch.zeros(3000), b=torch.ones(5)), note="x" * 300)
save_pth(content, sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    save_pth(content, sys.argv[1])
except OSError as error:
    print(error)
"""
    done = processes.run("-c", code, tmp_path/"last.pt", str(room), timeout=60)
    said = "could not be written" in done.stdout and "the one before it is intact" in done.stdout
    assert done.returncode == 0 and (said or room == 20_000), done.stdout + done.stderr
    assert torch.load(tmp_path/"last.pt", weights_only=True)["note"] == "x"*300
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_disk_that_is_full_anywhere_in_an_exported_program_is_an_error_and_no_abort(tmp_path):
    code = """
import io, resource, sys, torch
from lesa_nb.io.atomic import atomic_write, errors_at_the_end
program = torch.export.export(torch.nn.Linear(90, 90), (torch.ones(1, 90),))
before = resource.getrlimit(resource.RLIMIT_FSIZE)
for room in 0, 64, 3000, 20_000, before[0]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with atomic_write(sys.argv[1]) as file, errors_at_the_end(file) as writer:
            torch.export.save(program, writer)
    except OSError as error:
        print(error)
print(len(torch.export.load(sys.argv[1]).state_dict))
"""
    done = processes.run("-c", code, tmp_path/"net.pt2", timeout=120)
    assert done.returncode == 0, done.stderr
    *said, loaded = done.stdout.splitlines()
    assert len(said) == 4 and all("could not be written (File too large)" in line for line in said) and loaded == "2"


def test_identical_is_equal_to_the_bit():
    x = torch.tensor([1.0, 2.0])
    state = dict(model={"x": x}, best=[1.0, -2.0], step=3, name="a", average=None)
    assert identical(state, dict(state, model={"x": x.clone()}))
    others = (dict(model={"x": x + 1e-7}), dict(model={"x": x.double()}), dict(model={"x": 1}), dict(model={}))
    for other in (*others, dict(best=[1.0]), dict(best=(1.0, -2.0)), dict(step=4), dict(average=x), dict(more=1)):
        assert not identical(state, state | other) and not identical(state | other, state)
