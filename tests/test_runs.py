"""Runs that are never lost: resumed to the bit, stopped at any moment, guarded against what goes wrong."""

import errno
import fcntl
import json
import os
import resource
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import HERE, ended, patient, run, run_ranks, several
from small_runs import RECIPE, make_task, net
from torch import nn

from lesa_nb.cli.train import RunOptions
from lesa_nb.data.photos import open_image
from lesa_nb.engine._checkpoint import read_checkpoint, save_checkpoint
from lesa_nb.engine._lock import run_lock
from lesa_nb.engine.group import Ranks
from lesa_nb.engine.log import read_log
from lesa_nb.engine.run import fit
from lesa_nb.engine.signals import Stop, Stopped
from lesa_nb.io import patience
from lesa_nb.io.tensors import identical, read_metadata

pytestmark = pytest.mark.usefixtures("one_thread")  # equal to the bit; small networks are faster with one


def train(folder, *, task=None, recipe=RECIPE, **options):
    return list(fit(task or make_task(recipe), folder, device="cpu", **options))


def last(folder):
    return read_checkpoint(Path(folder) / "last.pt")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "Four epochs in one go."
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "straight"
    train(folder)
    return folder


def stopped_at(folder, epoch, step, **options):
    "Train until a signal comes after this step."
    with Stop() as stop, pytest.raises(Stopped) as caught:
        for event in fit(make_task(), folder, device="cpu", stop=stop, **options):
            if (event["kind"], event["epoch"], event["step"]) == ("step", epoch, step):
                signal.raise_signal(signal.SIGTERM)
    assert caught.value.status == 143


# ---- row 12: straight against resumed, to the bit


def test_two_and_two_epochs_make_four(straight, tmp_path):
    train(tmp_path, until=2)
    events = train(tmp_path, resume=True)
    assert events[0]["resumed"] and identical(last(tmp_path), last(straight))

    def drop(log):
        timed = ("images_per_second", "waiting")
        return [{k: v for k, v in e.items() if k not in timed} for e in log if e["kind"] in ("step", "valid")]

    assert drop(read_log(tmp_path)) == drop(read_log(straight))


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_in_mid_epoch(straight, tmp_path, workers):
    stopped_at(tmp_path, 1, 2, workers=workers)
    assert (last(tmp_path)["epoch"], last(tmp_path)["step"]) == (1, 2)
    train(tmp_path, resume=True, workers=2 - workers)  # the number of workers may change
    assert identical(last(tmp_path), last(straight))


def test_stopped_while_validating(straight, tmp_path):
    stopped_at(tmp_path, 0, 4)  # the last step: the signal is heard in validation
    assert (last(tmp_path)["epoch"], last(tmp_path)["step"]) == (0, 4)
    train(tmp_path, resume=True)
    assert identical(last(tmp_path), last(straight))


def test_stopped_before_the_first_step(straight, tmp_path):
    with Stop() as stop, pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)
        train(tmp_path, stop=stop)
    train(tmp_path, resume=True)
    assert identical(last(tmp_path), last(straight))


def test_a_finished_run_has_nothing_to_add(straight):
    before = last(straight)
    assert [e["kind"] for e in train(straight, resume=True)] == ["start", "end"]
    assert identical(before, last(straight))


# ---- row 11: killed, and a full disk


def kill(tmp_path, straight, times):
    done = run(HERE / "small_runs.py", "kill", tmp_path / "run", times, 0, timeout=1500)
    assert done.returncode == 0 and f"killed {times}" in done.stdout, done.stderr
    for folder in tmp_path.glob("run*"):
        if "last.pt" in os.listdir(folder):
            assert identical(last(folder)["model"], last(straight)["model"])


def test_killed_at_random_moments(tmp_path, straight):
    kill(tmp_path, straight, 4)


@pytest.mark.slow
def test_killed_at_50_random_moments(tmp_path, straight):
    kill(tmp_path, straight, 50)


def test_full_disk(tmp_path):
    code = """
import resource, sys
from small_runs import *
events = fit(make_task(), sys.argv[1], device="cpu")
for event in events:
    if event["kind"] == "valid":  # from now on no file may grow beyond 20 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""
    done = run("-c", code, tmp_path, timeout=120)
    assert "OSError" in done.stderr and "could not be written" in done.stderr
    assert (last(tmp_path)["epoch"], last(tmp_path)["step"]) == (
        0,
        4,
    )  # the one before is intact: the epoch, not validated
    assert not list(tmp_path.glob("*.part"))
    train(tmp_path, resume=True)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save(dict(metadata=Evil()), tmp_path / "last.pt")
    with pytest.raises(ValueError, match="unpickling it would run code"):
        train(tmp_path, resume=True)
    assert not (tmp_path / "pwned").exists()


# ---- row 14: what goes wrong in the numbers


def test_nan_at_step_7(tmp_path, straight):
    from lesa_nb.engine.run import sample_keys

    poisoned = sample_keys(128, RECIPE, 0, 1)[3][5]  # epoch 1, step 3: the eighth step
    with pytest.raises(FloatingPointError) as caught:
        train(tmp_path, task=make_task(poisoned=poisoned), minutes=0.0)
    text = str(caught.value)
    for part in (
        "epoch 1, step 3",
        "learning rate 0.0",
        "losses: loss nan",
        f"digits/{poisoned[1]}.png",
        "not updated",
    ):
        assert part in text
    saved = last(tmp_path)
    for name in ("model", "average"):
        assert all(t.isfinite().all() for t in saved[name].values())
    assert (saved["epoch"], saved["step"]) == (1, 3)
    train(tmp_path, resume=True)  # the picture was mended
    assert identical(last(tmp_path)["model"], last(straight)["model"])


def test_diverging_rate(tmp_path):
    with pytest.raises(FloatingPointError, match="the gradient is not finite"):
        train(tmp_path, recipe=replace(RECIPE, lr=1e25, warmup_steps=0))
    assert all(t.isfinite().all() for name in ("model", "average") for t in last(tmp_path)[name].values())


def test_out_of_memory_says_what_helps(tmp_path):
    class Greedy(nn.Module):
        def __init__(self, always):
            super().__init__()
            self.w, self.always = nn.Parameter(torch.ones(1)), always

        def forward(self, x):
            if self.always or self.training:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return x.new_zeros(len(x), 10)

    for always, says in (
        (False, "with 32 samples at once: accumulate=2 halves that"),
        (True, "with 16 samples at once: let the task validate fewer"),
    ):
        with pytest.raises(MemoryError, match=says):
            train(tmp_path / str(always), task=make_task(build=lambda: Greedy(always)))


# ---- bad input: nothing is overwritten


def test_refusals_change_nothing(tmp_path, straight):
    before = {p.name: p.read_bytes() for p in straight.iterdir() if p.is_file()}
    for message, options in (
        ("holds a run already", {}),
        ("arch: 'tiny' there, 'huge' now", dict(resume=True, task=make_task(metadata=dict(arch="huge", classes=10)))),
        ("recipe lr: 0.02 there, 0.5 now", dict(resume=True, recipe=replace(RECIPE, lr=0.5))),
        ("seed: 0 there, 3 now", dict(resume=True, seed=3)),
    ):
        with pytest.raises(ValueError, match=message):
            train(straight, **options)
    after = {p.name: p.read_bytes() for p in straight.iterdir() if p.is_file()}
    assert {k: v for k, v in before.items() if k != "lock"} == {k: v for k, v in after.items() if k != "lock"}


def test_two_runs_in_one_folder(tmp_path):
    first = fit(make_task(), tmp_path, device="cpu")
    next(first)
    with pytest.raises(OSError, match="another run .process .* is writing there"):
        train(tmp_path, resume=True)
    first.close()
    train(tmp_path, until=1)  # the lock went with the run


@pytest.mark.parametrize("number, file", [(errno.ENOSYS, "lock"), (errno.ENOLCK, "lock.soft")])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number, file, recwarn):
    "Lustre as it is often mounted, NFS without its lock daemon: a run goes, another is kept out, a dead one is named."
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    folder = tmp_path / "run"
    with run_lock(folder, Ranks()):
        pass
    assert not folder.exists()  # nothing was begun there
    folder.mkdir()
    with run_lock(folder, Ranks()):
        marker = (folder / file).read_text()
        with pytest.raises(OSError, match="another run .process .* on .*stop it") as caught, run_lock(folder, Ranks()):
            pass
        assert f"if its machine was switched off, delete {folder / file}" in str(caught.value)
    with run_lock(folder, Ranks()):
        assert not recwarn
    (folder / file).write_text(marker.replace(socket.gethostname(), "another-machine"))  # as after its power failed
    with pytest.raises(OSError, match=f"delete {folder / file}"), run_lock(folder, Ranks()):
        pass
    (folder / file).unlink()
    with run_lock(folder, Ranks()):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write there"):
        train(tmp_path / "file" / "run")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "last.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match="expected a checkpoint written by torch.save"):
        train(tmp_path / "torn", resume=True)


@pytest.mark.fault("R2")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_breaks_in_mid_epoch(tmp_path, straight, workers):
    from lesa_nb.engine.run import sample_keys

    broken = sample_keys(128, RECIPE, 0, 0)[2][7]
    with pytest.raises(ValueError) as caught:
        train(tmp_path, task=make_task(broken=broken), workers=workers)
    text = str(caught.value)
    assert f"digits/{broken[1]}.png" in text and "epoch 1 before step 2" in text and "Traceback" not in text
    train(tmp_path, resume=True)
    assert identical(last(tmp_path), last(straight))


def test_too_few_pictures_and_odd_batches(tmp_path):
    with pytest.raises(ValueError, match="20 samples cannot fill one batch of 32"):
        train(tmp_path / "a", task=make_task(train=20))
    with pytest.raises(ValueError, match="choose a batch size that 3 divides"):
        train(tmp_path / "b", recipe=replace(RECIPE, accumulate=3))


# ---- a run knows the data it was started on


class Named:
    "Samples with names, some of them left out or called otherwise."

    def __init__(self, samples, keep=None, rename=None):
        self.samples, self.keep, self.rename = samples, keep or range(len(samples)), rename or {}

    def __len__(self):
        return len(self.keep)

    def sample_name(self, index):
        return self.rename.get(index, f"cat/{self.keep[index]:04d}.png")

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, tuple) else (None, key)
        return self.samples[index if epoch is None else (epoch, self.keep[index])]


@pytest.mark.fault("R3")
def test_other_data_are_refused_or_accepted(tmp_path):
    task = make_task()
    samples, named = task.train, task._replace(train=Named(task.train))
    stopped = train(tmp_path, task=named, until=1)
    assert read_metadata(tmp_path / "last.safetensors")["data"]["train"]["first"] == [
        f"cat/000{i}.png" for i in range(3)
    ]
    before = last(tmp_path)
    for change, says in (
        (Named(samples, range(100)), "train: 128 samples there, 100 now"),
        (
            Named(samples, rename={1: "dog/0001.png"}),
            "as many samples, but 'cat/0001.png' there where 'dog/0001.png' is now",
        ),
        (Named(samples, rename={90: "dog/0090.png"}), "the first names agree, but later ones differ"),
    ):
        with pytest.raises(ValueError, match=f"a run on other data .*{says}.*accept_changed_data=True"):
            train(tmp_path, task=named._replace(train=change), resume=True)
    with pytest.raises(ValueError, match="valid: 50 samples there, 40 now"):
        train(tmp_path, task=make_task(valid=40)._replace(train=named.train), resume=True)
    assert identical(before, last(tmp_path)) and stopped[-1]["kind"] == "end"
    fewer = named._replace(train=Named(samples, range(100)))
    events = train(tmp_path, task=fewer, resume=True, accept_changed_data=True, until=2)
    assert [(e["epoch"], e["step"]) for e in events if e["kind"] == "step"] == [(1, 1), (1, 2), (1, 3)]
    train(tmp_path, task=fewer, resume=True)  # from now on these are the run's data


def test_what_the_advice_says_can_be_done(tmp_path):
    "Out of memory, or a rate too high, after days: the same run goes on, and nobody is told to begin again."
    train(tmp_path, until=1)
    before = last(tmp_path)["optimizer"]["param_groups"][0]["momentum"]
    gentler = replace(RECIPE, lr=0.002, accumulate=2, clip=1.0, precision="bfloat16", epochs=3)
    with pytest.raises(ValueError, match="recipe accumulate: 1 there, 2 now; .*accept_changed_recipe=True"):
        train(tmp_path, recipe=gentler, resume=True)
    events = train(tmp_path, recipe=gentler, resume=True, accept_changed_recipe=True)
    assert events[0]["lr"] == 0.002 and events[0]["local_batch_size"] == 16
    assert [e["epoch"] for e in events if e["kind"] == "valid"] == [1, 2]
    assert train(tmp_path, recipe=gentler, resume=True)[0]["resumed"]  # it is this run's recipe now
    for wrong in (dict(batch_size=16), dict(momentum=0.5), dict(ema=0.0), dict(precision="float16")):
        other = replace(gentler, lr=1.0, **wrong)
        with pytest.raises(ValueError, match=f"recipe {next(iter(wrong))}: .* there, ") as caught:
            train(tmp_path, recipe=other, resume=True, accept_changed_recipe=True)
        assert "recipe lr" not in str(caught.value) and "accept_changed_recipe" not in str(caught.value)
    with pytest.raises(ValueError, match="another run .seed: 0 there, 1 now.: ask"):
        train(tmp_path, recipe=gentler, resume=True, accept_changed_recipe=True, seed=1)
    assert last(tmp_path)["optimizer"]["param_groups"][0]["momentum"] == before


def test_a_run_goes_on_without_the_file_that_it_started_from(tmp_path):
    "A week later scratch has been swept; the weights that it held have been learned on."
    began = dict(arch="tiny", classes=10, start=dict(file="resnet50.pth", sha256="0"))
    train(tmp_path, task=make_task(metadata=began), until=1)
    with pytest.raises(ValueError, match="start: {'file': 'resnet50.pth', .*} there, {'file': 'other.pth'} now"):
        train(tmp_path, task=make_task(metadata=began | dict(start=dict(file="other.pth"))), resume=True)
    train(tmp_path, resume=True, until=2)
    assert read_metadata(tmp_path / "last.safetensors")["start"] == began["start"]  # and still says so
    train(tmp_path, task=make_task(metadata=began), resume=True, until=3)
    run = RunOptions(resume="auto")
    with pytest.raises(FileNotFoundError, match="resnet50.pth: no such file; the run in .* leave --start out"):
        run.check_start(tmp_path / "resnet50.pth", tmp_path)
    run.check_start(None, tmp_path)
    run.check_start(tmp_path / "resnet50.pth", tmp_path / "new")  # a new run says it in its own words


def test_a_server_that_is_away_for_a_moment_does_not_end_a_run(tmp_path, monkeypatch):
    "Once in a week a network's file system says EIO or ESTALE: to a checkpoint, or to a picture."
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0))
    fsync, left = os.fsync, []

    def away(number):
        if left and os.readlink(f"/proc/self/fd/{number}").endswith(".part"):
            raise OSError(left.pop(), "away")
        fsync(number)

    monkeypatch.setattr(os, "fsync", away)
    left[:] = [errno.EIO, errno.ESTALE]
    assert train(tmp_path, until=1)[-1]["kind"] == "end" and not left
    left[:] = [errno.EIO] * 3
    with pytest.raises(OSError, match="could not be written .away.; the one before it is intact"):
        train(tmp_path, resume=True)
    left[:] = [errno.ENOSPC]  # does not pass: told at once
    with pytest.raises(OSError, match="could not be written"):
        train(tmp_path, resume=True)
    left.clear()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    opened, real = [errno.ESTALE], open

    def stale(path, *words, **options):
        if str(path).endswith("a.png") and opened:
            raise OSError(opened.pop(), "away", path)
        return real(path, *words, **options)

    monkeypatch.setattr("builtins.open", stale)
    assert open_image(tmp_path / "a.png").size == (4, 4) and not opened
    opened[:] = [errno.ENOENT]
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "a.png")


def test_a_run_cut_off_after_validating_says_its_scores_once(tmp_path):
    "The log was written, and the checkpoint that counts the epoch as done was not."
    events = fit(make_task(), tmp_path, device="cpu")
    assert next(e for e in events if e["kind"] == "valid")["epoch"] == 0
    events.close()
    assert last(tmp_path)["step"] == 4 and read_log(tmp_path)[-1]["kind"] == "valid"
    train(tmp_path, resume=True, until=2)
    assert [e["epoch"] for e in read_log(tmp_path) if e["kind"] == "valid"] == [0, 1]


def test_a_checkpoint_of_another_version_is_a_sentence(tmp_path):
    "Who updates the library in the middle of a week may build another network of the same name."
    def grown():
        model = net()
        model.more = nn.Linear(2, 2)
        return model

    train(tmp_path, until=1)
    before = last(tmp_path)
    with pytest.raises(ValueError, match="this version of lesa_nb cannot go on from it .*more.weight.*choose another"):
        train(tmp_path, task=make_task(build=grown), resume=True)
    assert identical(before, last(tmp_path))
    save_checkpoint({name: value for name, value in before.items() if name != "scaler"}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="this version of lesa_nb cannot go on from it .no 'scaler'.: resume with"):
        train(tmp_path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_weights_without_a_checkpoint_are_not_replaced(tmp_path, resume):
    "Who removes last.pt to save room has the weights of days beside it."
    train(tmp_path, until=1)
    (tmp_path / "last.pt").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds weights of a run .best.safetensors. and no checkpoint .last.pt."):
        train(tmp_path, resume=resume)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_log_without_room_is_told_with_its_name(tmp_path):
    events = fit(make_task(), tmp_path, device="cpu")
    next(events)
    limits, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (tmp_path / "log.jsonl").stat().st_size
    next(events)  # the checkpoint is there
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200, limits[1]))
    try:
        with pytest.raises(OSError, match="log.jsonl: the log could not be written .*checkpoint is intact. Make room"):
            list(events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    assert train(tmp_path, resume=True)[-1]["kind"] == "end"


# ---- validation is tried first, and costs no epoch


@pytest.mark.fault("R5")
def test_validation_that_cannot_work_is_found_out_before_the_first_step(tmp_path):
    from functools import partial

    from lesa_nb.tasks.classify import classification_scores

    task = make_task()
    with pytest.raises(ValueError, match="at least 2 classes"):
        train(tmp_path, task=task._replace(validate=partial(classification_scores, classes=1)))
    assert not (tmp_path / "last.pt").exists()
    train(tmp_path, until=1)  # so the folder holds no run


@pytest.mark.fault("R5")
def test_an_epoch_is_saved_before_validating(tmp_path, straight):
    task, calls = make_task(), []

    def fails_once(model, batches):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the second validation fails")
        return task.validate(model, batches)

    with pytest.raises(RuntimeError, match="the second validation fails"):
        train(tmp_path, task=task._replace(validate=fails_once))
    assert (last(tmp_path)["epoch"], last(tmp_path)["step"]) == (0, 4)
    train(tmp_path, resume=True)
    assert identical(last(tmp_path), last(straight))


@pytest.mark.fault("R11")
def test_ties_go_to_the_smaller_loss(tmp_path):
    told = iter([(50.0, 9.0), (50.0, 2.0), (50.0, 1.0), (50.0, 3.0), (40.0, 0.1)])  # the first is the trial

    def scores(model, batches):
        for _ in batches:
            pass
        return dict(zip(("top1", "loss"), next(told)))

    events = train(tmp_path, task=make_task()._replace(validate=scores))
    assert [e["best"] for e in events if e["kind"] == "valid"] == [True, True, False, False]
    assert events[-1]["best"] == 50.0 and read_metadata(tmp_path / "best.safetensors")["scores"]["loss"] == 1.0


@pytest.mark.fault("R11")
def test_without_a_loss_the_first_of_equal_scores_stays(tmp_path):
    "Detectors are validated by AP alone: a later epoch is not better for being later."

    def scores(model, batches):
        for _ in batches:
            pass
        return {"top1": 50.0}

    events = train(tmp_path, task=make_task()._replace(validate=scores))
    assert [e["best"] for e in events if e["kind"] == "valid"] == [True, False, False, False]


@pytest.mark.fault("R6")
def test_other_devices_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="device meta: expected a CPU"):
        list(fit(make_task(), tmp_path / "new", device="meta"))
    with pytest.raises(ValueError, match="choose a batch size that 3 divides"):
        train(tmp_path / "new", recipe=replace(RECIPE, accumulate=3))
    assert not (tmp_path / "new").exists()


def test_a_run_that_never_began_leaves_no_folder(tmp_path):
    def build():
        raise FileNotFoundError("the weights to start from")

    with pytest.raises(FileNotFoundError, match="to start from"):
        list(fit(make_task(build=build), tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_another_run_leaves_nothing_lying_about(tmp_path):
    tmp_path.joinpath("last.pt.123.part").write_bytes(b"of a run that was killed")
    train(tmp_path, until=1)
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "lock.holder").exists()


# ---- every switch of a recipe


@pytest.mark.parametrize(
    "changes",
    [
        dict(accumulate=4),
        dict(clip=0.05),
        dict(channels_last=True),
        dict(precision="bfloat16"),
        dict(precision="float64"),
        dict(ema=0.0),
        dict(label_smoothing=0.1),
        dict(decay_all=False),
        dict(milestones=(1, 2)),
        dict(nesterov=False),
    ],
)
def test_switches(tmp_path, straight, changes):
    recipe = replace(RECIPE, **changes)
    losses = [e["loss"] for e in train(tmp_path, recipe=recipe, until=1) if e["kind"] == "step"]
    usual = [e["loss"] for e in read_log(straight) if e["kind"] == "step"][: len(losses)]
    assert all(map(torch.isfinite, torch.tensor(losses)))
    assert losses != usual or "ema" in changes or "decay_all" in changes or "milestones" in changes
    if {"channels_last", "precision"} & set(changes):
        assert max(abs(a - b) for a, b in zip(losses[:2], usual)) < (
            0.1 if changes.get("precision") == "bfloat16" else 1e-3
        )
    assert read_metadata(tmp_path / "last.safetensors")["averaged"] == bool(recipe.ema)


def test_mixing_is_part_of_the_random_state(tmp_path):
    from functools import partial

    from lesa_nb.tasks.classify import _mixer, classification_losses

    recipe = replace(RECIPE, mixup=0.2, cutmix=1.0)
    task = make_task(recipe)._replace(losses=partial(classification_losses, recipe=recipe, mix=_mixer(recipe, 10)))
    train(tmp_path / "straight", task=task, until=2)
    train(tmp_path / "resumed", task=task, until=1)
    train(tmp_path / "resumed", task=task, until=2, resume=True)
    assert identical(last(tmp_path / "straight"), last(tmp_path / "resumed"))


@pytest.mark.slow
def test_compiled(tmp_path, straight):
    recipe = replace(RECIPE, epochs=1, compile=True)
    compiled = [e["loss"] for e in train(tmp_path, recipe=recipe) if e["kind"] == "step"]
    usual = [e["loss"] for e in read_log(straight) if e["kind"] == "step"][: len(compiled)]
    assert abs(compiled[0] - usual[0]) < 1e-4


# ---- row 16: norms


def test_frozen_norms_keep_still_for_10_steps():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    before = {k: v.clone() for k, v in model.named_buffers()}
    assert any(isinstance(m, nn.BatchNorm1d) for m in model.modules())
    for _ in range(10):
        model(torch.randn(4, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())


# ---- row 15: several processes


def test_metrics_over_two_processes_equal_one(tmp_path):
    statuses, outputs = ended(several(HERE / "small_runs.py", "metrics", tmp_path / "two.json"))
    assert statuses == [0, 0], outputs
    done = run(HERE / "small_runs.py", "metrics", tmp_path / "one.json")
    assert done.returncode == 0, done.stderr
    one, both = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert one.keys() == both.keys() and all(abs(one[k] - both[k]) < 1e-5 * max(1, abs(one[k])) for k in one), (
        one,
        both,
    )
    assert one["top1"] * 10.03 == pytest.approx(round(one["top1"] * 10.03), abs=1e-3)  # a share of 1,003 pictures


APART = """
import os, sys
from pathlib import Path
from lesa_nb.engine.run import fit
from small_runs import make_task
what, folder = sys.argv[1:]
rank = int(os.environ["RANK"])
task = make_task(train=128 - rank) if what == "data" else make_task()
if what == "folder": folder = Path(folder, str(rank))
try:
    for _ in fit(task, folder, device="cpu", resume=True): pass
except ValueError as error: print(error)
"""


def test_machines_with_other_data_or_another_folder_do_not_train_together(tmp_path):
    "Each with a copy of its own: an order of samples, and even weights of its own, without a word."
    said = run_ranks("-c", APART, "data", tmp_path / "data", timeout=60)
    assert said.count("process 1 on ") == 2 == said.count("than process 0 (train: 128 samples in "), said
    assert "127 samples here" not in said and ", 127 here" in said
    train(tmp_path / "folder" / "0", until=1)
    said = run_ranks("-c", APART, "folder", tmp_path / "folder", timeout=60)
    assert said.count("not the same for all: epoch 1, step 0 for process 0 on ") == 2, said
    assert said.count("none for process 1 on") == 2 and "a folder that all machines share" in said


def test_a_process_that_dies_ends_the_other(tmp_path):
    start = time.monotonic()
    statuses, outputs = ended(several(HERE / "small_runs.py", "fails", tmp_path / "run"), 60)
    assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, None)
    assert "another process has ended" in outputs[0], outputs[0]
    assert time.monotonic() - start < patient(60)
    train(tmp_path / "run", resume=True)  # and nothing is lost


def test_save_checkpoint_leaves_nothing_beside_it(tmp_path):
    save_checkpoint(dict(metadata={}), tmp_path / "a.pt")
    with pytest.raises(OSError, match="there is none yet"):
        save_checkpoint(dict(metadata={}), tmp_path / "gone" / "a.pt")
    assert os.listdir(tmp_path) == ["a.pt"]
