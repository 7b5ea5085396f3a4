"""A recipe refuses numbers that make no sense, before anything is written, and says what follows from the others."""
import math
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from lesa_nb.engine.loop import lr_factor
from lesa_nb.engine.recipe import Recipe, describe_recipe, fit_batch

COSINE = Recipe("classifier", epochs=95, batch_size=128, lr=.05, lr_batch=128, nesterov=True, weight_decay=8e-5,
                warmup_epochs=5)
STAIRS = Recipe("detector", epochs=20, batch_size=8, lr=.01, lr_batch=8, weight_decay=1e-4, warmup_steps=500,
                warmup_from=.001, milestones=(16, 19))


@pytest.mark.fault("R6")
@pytest.mark.parametrize("changes, says", [
    (dict(label_smoothing=-.1), "label_smoothing of a recipe must be at least 0 and at most 1, got -0.1"),
    (dict(label_smoothing=1.5), "label_smoothing .* got 1.5"),
    (dict(ema=1.5), "ema of a recipe must be at least 0 and less than 1, got 1.5"),
    (dict(ema=1.), "ema .* less than 1, got 1.0"),
    (dict(momentum=2), "momentum of a recipe must be at least 0 and less than 1, got 2"),
    (dict(clip=-1), "clip of a recipe must be at least 0 and finite, got -1"),
    (dict(lr=math.nan), "lr of a recipe must be more than 0 and finite, got nan"),
    (dict(lr=math.inf), "lr .* got inf"), (dict(lr=0), "lr .* got 0"), (dict(lr="0.1"), "lr .* got '0.1'"),
    (dict(weight_decay=-1e-4), "weight_decay"), (dict(weight_decay=math.nan), "weight_decay"),
    (dict(warmup_from=1.1), "warmup_from"), (dict(warmup_epochs=-1), "warmup_epochs"),
    (dict(warmup_steps=-1), "warmup_steps"), (dict(warmup_steps=.5), "warmup_steps .* whole, .* got 0.5"),
    (dict(mixup=-.1), "mixup"), (dict(cutmix=math.inf), "cutmix"),
    (dict(epochs=0), "epochs of a recipe must be whole, at least 1 and at most 100,000, got 0"),
    (dict(epochs=1.5), "epochs"), (dict(epochs=99_999_999_999), "at most 100,000, got 99999999999"),
    (dict(batch_size=10**8), "at most 1,048,576"),
    (dict(batch_size=0), "batch_size"), (dict(lr_batch=0), "lr_batch"), (dict(accumulate=0), "accumulate"),
    (dict(accumulate=True), "accumulate"), (dict(momentum=True), "momentum"),
    (dict(precision="half"), "precision must be float32, bfloat16, float16 or float64, got 'half'"),
    (dict(optimizer="lion"), "optimizer must be sgd or adamw, got 'lion'"),
    (dict(milestones=(3, 2)), "milestones of a recipe must be epochs in rising order"), (dict(milestones=(0,)), "mil"),
    (dict(tf32=1), "tf32 of a recipe must be True or False"), (dict(deterministic="yes"), "deterministic of a recipe"),
    (dict(compile=1), "compile of a recipe must be True or False, got 1"),
    (dict(nesterov=True, momentum=0), "momentum of a recipe must be more than 0"),
])
def test_numbers_out_of_range_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(COSINE, **changes)


@pytest.mark.fault("R6")
def test_every_number_has_a_range():
    "Whatever is added to a recipe is refused as nan or as a word."
    for field in fields(Recipe):
        if field.name in ("name", "augment"):
            continue
        with pytest.raises((ValueError, TypeError)):
            replace(COSINE, **{field.name: math.nan})


def test_it_cannot_be_changed_in_passing():
    with pytest.raises(FrozenInstanceError):
        COSINE.lr = 1
    assert COSINE.changed(epochs=3, batch_size=None) == replace(COSINE, epochs=3)


def test_the_rate_follows_the_batch():
    assert replace(COSINE, batch_size=1024).peak_lr == pytest.approx(.4)
    assert replace(COSINE, accumulate=4).local_batch_size(8) == 4
    with pytest.raises(ValueError, match="choose a batch size that 3 divides"):
        COSINE.local_batch_size(3)


@pytest.mark.parametrize("batch, accumulate, processes, samples, becomes", [
    (128, 1, 1, 128, (128, 1)), (128, 1, 1, 127, (127, 1)), (128, 1, 1, 1, (1, 1)), (128, 1, 2, 127, (126, 1)),
    (128, 1, 4, 5, (4, 1)), (32, 4, 1, 8, (8, 1)), (32, 4, 1, 9, (8, 2)), (32, 4, 2, 9, (8, 2)),
    (32, 4, 1, 31, (28, 4)), (16, 16, 1, 7, (7, 7)), (8, 4, 2, 3, (2, 1)), (7, 3, 2, 6, (6, 3))])
def test_a_batch_fits_the_samples(batch, accumulate, processes, samples, becomes):
    asked = replace(COSINE, batch_size=batch, accumulate=accumulate)
    fitted = asked.fitted(samples, processes)
    assert (fitted.batch_size, fitted.accumulate) == becomes
    if samples < batch:
        at_once = fitted.local_batch_size(processes)  # it can be cut
        assert at_once <= max(1, batch//(processes*accumulate)) and fitted.batch_size <= samples
        assert fitted.fitted(samples, processes) == fitted
    assert fitted.peak_lr == pytest.approx(.05*fitted.batch_size/128)
    assert replace(fitted, batch_size=batch, accumulate=accumulate) == asked


def test_a_smaller_batch_is_said_aloud(monkeypatch):
    heard = []
    assert fit_batch(COSINE, 200, heard.append) is COSINE and not heard
    assert fit_batch(COSINE, 20, heard.append) == replace(COSINE, batch_size=20)
    assert heard == ["batch: 20 samples to train on do not fill one of 128, so a step takes 20, and the learning rate "
                     "follows: 0.0078125 in place of 0.05"]
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert fit_batch(COSINE, 20, heard.append).batch_size == 18
    with pytest.raises(ValueError, match="2 sample.* for 3 processes: start no more processes"):
        fit_batch(COSINE, 2, heard.append)


@pytest.mark.fault("R10")
def test_a_warm_up_fits_the_run():
    "The published five epochs of three would be all of it: at most a quarter of a run is spent on the way up."
    short, longer = replace(COSINE, epochs=3), replace(COSINE, epochs=6)
    assert (COSINE.warmup(100), STAIRS.warmup(100)) == (500, 500)  # as published
    assert (short.warmup(100), longer.warmup(100), STAIRS.warmup(10)) == (75, 150, 50)
    factors = [lr_factor(short, t, 100) for t in range(300)]
    assert max(factors) == 1 and factors.index(1) == 74  # the rate arrives
    assert factors == sorted(factors[:75]) + sorted(factors[75:], reverse=True)
    assert replace(COSINE, warmup_epochs=0).warmup(100) == 0


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_run_of_few_steps_learns_in_each(steps):
    for recipe in (replace(COSINE, epochs=1), replace(STAIRS, epochs=1)):
        assert recipe.warmup(steps) == steps//4
        assert all(lr_factor(recipe, t, steps) > 0 for t in range(steps))


@pytest.mark.fault("R10")
def test_a_longer_run_never_warms_up_less():
    warmups = [replace(COSINE, epochs=n).warmup(10) for n in range(1, 40)]
    assert warmups == sorted(warmups) and warmups[-1] == 50


def test_it_is_told_in_words():
    said = describe_recipe(COSINE, 1_281_167, 4)
    assert "so 0.05 for 128 (4 process(es) x 1 micro-batch(es) x 32 samples)" in said
    assert "10,009 steps in an epoch, 950,855 in all" in said and "warm-up" not in said
    assert "batch norm sees 128 samples at once" in said and said.startswith("recipe classifier: epochs 95, batch_size")
    assert "statistics are frozen" in describe_recipe(STAIRS, 117_266, frozen=True)
    cut = describe_recipe(replace(COSINE, epochs=2), 1_281_167)
    assert "warm-up: 50,045 steps were asked for, and the run has 20,018: cut to 5,004, a quarter" in cut
    assert "milestones: " not in describe_recipe(STAIRS, 117_266)
    early = describe_recipe(replace(STAIRS, epochs=18), 117_266)
    assert "milestones: the run ends before 19, so the rate does not fall there" in early
