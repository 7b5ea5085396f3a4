"""The demo in a handful of steps: every file is written, read again, and holds what it says."""
import contextlib
import io
import json
import sys

import pytest
import torch
from PIL import Image

from lesa_nb.cli import app as cli
from lesa_nb.data.pictures import chunks
from lesa_nb.io.tensors import read_metadata
from lesa_nb.look.capture import attention_layers
from lesa_nb.study import demo as demo_module
from lesa_nb.study import small as study
from lesa_nb.study._onecycle import accuracy
from lesa_nb.weights.load import load

PROBLEMS = {"digits": "digits", "find the twin": "twin"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "The folder that a quick demo has written, and what it printed."
    folder = tmp_path_factory.mktemp("out")/"a demo; ünd so"
    said, bars = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(bars):
        status = cli.main(["demo", "--quick", "--out", str(folder)])
    assert status == 0
    return folder, said.getvalue(), bars.getvalue()


def test_everything_is_written(demo):
    folder, said, bars = demo
    weights = {f"{name}_{term}.safetensors" for name in PROBLEMS.values() for term in study.INNER}
    figures = {"learning_curves.png", "explain.png", "explain_twin.png"}
    assert {path.name for path in folder.iterdir()} == weights | figures | {"metrics.json"}
    for name in figures:
        with Image.open(folder/name) as figure:
            figure.load()
            assert figure.format == "PNG" and min(figure.size) > 300
            assert len(figure.convert("L").getcolors()) > 50  # not a blank page


def test_metrics_tell_the_run(demo):
    folder, said, bars = demo
    metrics = json.loads((folder/"metrics.json").read_text())
    assert metrics["seed"] == 0 and metrics["steps"] == 4 and metrics["seconds"] > 0
    assert metrics["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert metrics["results"].keys() == PROBLEMS.keys()
    for problem, runs in metrics["results"].items():
        assert runs.keys() == study.INNER.keys()
        counts = [f["parameters"] for f in runs.values()]
        assert max(counts) < 1.1*min(counts)
        for term, f in runs.items():
            assert 0 <= f["accuracy"] <= 1 and f["steps"] == 4
            assert f"{f['accuracy']:.1%}" in said and f"{f['parameters']:,}" in said
            assert f"{problem}, {study.TERM_NAMES[term]}" in bars


def test_the_function_returns_what_it_writes(tmp_path):
    metrics = demo_module.train_demo(tmp_path, steps=1, batch_size=16, valid=16)
    assert metrics == json.loads((tmp_path/"metrics.json").read_text())
    for problem, name in PROBLEMS.items():
        for term, metadata in metrics["results"][problem].items():
            model, _, _, read, _ = load(tmp_path/f"{name}_{term}.safetensors")
            assert read == metadata and read["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_quick_run_claims_nothing(demo):
    folder, said, bars = demo
    assert "nothing was learned" in said
    for word in ("ahead", "behind", "tie"):
        assert word not in said


def test_weights_give_the_accuracy_that_they_claim(demo):
    folder, said, bars = demo
    problems = {"digits": study.digit_problem(), "twin": study.twin_problem(valid=64)}
    for name, problem in problems.items():
        for term in study.INNER:
            model, _, _, metadata, _ = load(folder/f"{name}_{term}.safetensors")
            assert metadata == read_metadata(folder/f"{name}_{term}.safetensors")
            right = accuracy(model, chunks(problem.valid, 128))
            assert right == pytest.approx(metadata["accuracy"], abs=1.5/metadata["pictures"])
            assert len(attention_layers(model)) == (0 if term == "conv" else 2)


@pytest.mark.parametrize("term", ["lesa", "attention"])
def test_explain_takes_every_network_of_the_demo_that_attends(demo, term, tmp_path, capsys):
    folder, said, bars = demo
    Image.effect_noise((70, 50), 60).save(tmp_path/"photo.png")
    for name in PROBLEMS.values():
        weights, out = str(folder/f"{name}_{term}.safetensors"), tmp_path/f"{name}.png"
        status = cli.main(["explain", str(tmp_path/"photo.png"), "--weights", weights, "--out", str(out)])
        assert status == 0 and "UNTRAINED" not in capsys.readouterr().out
        assert out.is_file()


def test_a_longer_run_reports_findings_from_its_numbers(monkeypatch, capsys):
    metadata = dict(task="t", chance=1/3, pictures=1000, seed=5, parameters=1, steps=300, seconds=1.)
    accuracies = dict(conv=.97, attention=.33, lesa=.90)
    results = {"t": {term: dict(metadata, accuracy=a) for term, a in accuracies.items()}}
    made = dict(results=results, findings=[study.findings(runs) for runs in results.values()], seconds=9.)
    monkeypatch.setattr(demo_module, "train_demo", lambda *args, **options: made)
    assert cli.main(["demo"]) == 0
    said = capsys.readouterr().out
    assert "LESA is behind" in said and "-7.0 points" in said and "guessing (33.3%): plain attention 33.0%" in said


def test_demo_without_scikit_learn_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert cli.main(["demo", "--quick", "--out", str(tmp_path/"out")]) == 2
    assert "pip install 'lesa_nb[demo]'" in capsys.readouterr().err


def test_demo_into_a_file_is_refused(tmp_path, capsys):
    (tmp_path/"out").write_text("in the way")
    assert cli.main(["demo", "--quick", "--out", str(tmp_path/"out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(tmp_path/"out") in err
