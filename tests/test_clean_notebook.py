"""What a saved notebook keeps: tools/clean_notebook.py, fed as JupyterLab and nbclient would feed it."""

import asyncio
import base64
import copy
import io
import json
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import clean_notebook  # noqa: E402
import lab  # noqa: E402
import project  # noqa: E402


def png(pixels, **words):
    "Base64 text of a PNG picture; `words` are written into the file."
    info = PngImagePlugin.PngInfo()
    for key, value in words.items():
        info.add_text(key, value)
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(file, "PNG", pnginfo=info)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def committed(pixels):
    "A notebook as git holds it."
    figure = {"data": {"image/png": png(pixels)}, "metadata": {}, "output_type": "display_data"}
    cells = [
        {"cell_type": "markdown", "id": "a1", "metadata": {}, "source": ["# A title\n", "> and a promise"]},
        {"cell_type": "code", "id": "b2", "metadata": {}, "execution_count": None, "source": ["x = 1\n", "x"]},
        {"cell_type": "code", "id": "c3", "metadata": {}, "execution_count": None, "source": ["draw(x)"]},
    ]
    cells[1]["outputs"], cells[2]["outputs"] = [], [figure]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def saved_by_lab(committed, figure):
    "The same notebook after `Run All`, as JupyterLab sends it: sources in one piece, all that it noted down."
    nb = copy.deepcopy(committed)
    nb["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    nb["metadata"]["language_info"] = {"name": "python", "version": "3.12.3", "file_extension": ".py"}
    nb["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    for number, cell in enumerate(nb["cells"]):
        cell["source"] = "".join(cell["source"])
        cell["metadata"] = {"trusted": True, "scrolled": True, "execution": {"iopub.execute_input": "2026"}}
        if cell["cell_type"] == "code":
            cell["execution_count"] = number
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "7"}, "text/plain": "<Bar>"}
    nb["cells"][1]["outputs"] = [
        {"output_type": "stream", "name": "stderr", "text": "a warning\n"},
        {"output_type": "execute_result", "data": {"text/plain": "1"}, "metadata": {}, "execution_count": 1},
        {"output_type": "display_data", "data": widget, "metadata": {}},
    ]
    data = {"image/png": figure + "\n", "text/plain": "<Figure size 600x400 with 1 Axes>"}
    drawn = {"output_type": "display_data", "data": data, "metadata": {"needs_background": "light"}}
    nb["cells"][2]["outputs"] = [drawn]
    return nb


def as_file(nb):
    "The text of the file that JupyterLab and nbdev write of a notebook."
    return nbformat.writes(nbformat.from_dict(nb)) + "\n"


def cleaned(nb, before):
    clean_notebook.clean(nb, before=before)
    return as_file(nb)


def test_running_and_saving_writes_the_file_that_was_there(committed, pixels):
    assert cleaned(saved_by_lab(committed, png(pixels)), committed) == as_file(committed)


def test_the_same_picture_in_other_bytes_keeps_its_bytes(committed, pixels):
    again = png(pixels, Software="Matplotlib version 9.9, https://matplotlib.org/")
    assert again != png(pixels)
    assert cleaned(saved_by_lab(committed, again), committed) == as_file(committed)


def test_a_picture_within_rounding_keeps_its_bytes(committed, pixels):
    nearly = pixels.copy()
    nearly[::7, ::5] ^= 7  # the last digits, here and there
    assert cleaned(saved_by_lab(committed, png(nearly)), committed) == as_file(committed)


@pytest.mark.parametrize("measured", [False, True])
def test_words_for_a_picture_stay_with_it(committed, pixels, measured):
    "As `IPython.display.Image(..., alt=...)` has them; those of a measured figure are what was measured then."
    nb = saved_by_lab(committed, png(pixels, Software="another"))
    nb["cells"][2]["outputs"][0]["metadata"] = {"image/png": {"alt": "two bars", "width": 7}, "needs_background": "x"}
    if measured:
        for page in (nb, committed):
            page["cells"][2]["source"] = "#| measured\ndraw(x)"
    clean_notebook.clean(nb, before=committed)
    figure = {"data": {"image/png": png(pixels)}, "metadata": {"image/png": {"alt": "two bars"}},
              "output_type": "display_data"}
    assert nb["cells"][2]["outputs"] == [figure]
    now = saved_by_lab(nb, png(pixels))
    now["cells"][2]["outputs"][0]["metadata"] = {"image/png": {"alt": ["two ", "balks"]}}
    clean_notebook.clean(now, before=nb)
    assert project.alternative_text(now["cells"][2]["outputs"][0]) == ("two bars" if measured else "two balks")


@pytest.mark.parametrize("change", ["a bar", "a size", "a colour", "a letter"])
def test_another_picture_is_written(committed, pixels, change):
    other = pixels.copy()
    if change == "a bar":
        other[10:20, 10:16] = 0
    if change == "a letter":  # a handful of pixels: a number in a title is another one
        other[4:7, 4] = 255 - other[4:7, 4]
    if change == "a size":
        other = other[:-1]
    if change == "a colour":
        other[..., 2] = 255 - other[..., 2]
    nb = saved_by_lab(committed, png(other))
    clean_notebook.clean(nb, before=committed)
    assert nb["cells"][2]["outputs"][0]["data"]["image/png"] == png(other)


def test_a_measured_figure_stays_while_its_code_is_the_same(committed, pixels):
    committed["cells"][2]["source"] = ["#| measured\n", "draw(seconds())"]
    other = png(255 - pixels)
    assert cleaned(saved_by_lab(committed, other), committed) == as_file(committed)
    for changed in (1, 2):  # who tries another rate further up is shown, and keeps, what it came to
        nb = saved_by_lab(committed, other)
        nb["cells"][changed]["source"] += "  # in other words"
        clean_notebook.clean(nb, before=committed)
        assert nb["cells"][2]["outputs"][0]["data"]["image/png"] == other


def test_a_new_cell_a_moved_cell_and_a_second_figure(committed, pixels):
    nb = saved_by_lab(committed, png(pixels, Software="another"))
    nb["cells"].insert(0, nb["cells"].pop())
    nb["cells"].append({**copy.deepcopy(nb["cells"][0]), "id": "d4"})
    nb["cells"][0]["outputs"] *= 2
    clean_notebook.clean(nb, before=committed)
    assert [len(cell.get("outputs", [])) for cell in nb["cells"]] == [2, 0, 0, 1]
    assert nb["cells"][3]["outputs"][0]["data"]["image/png"] == png(pixels, Software="another")


def test_the_cell_that_shift_enter_adds_goes_and_an_empty_notebook_stays(committed, pixels):
    empty = {"cell_type": "code", "id": "e5", "metadata": {}, "execution_count": None, "outputs": [], "source": ""}
    nb = saved_by_lab(committed, png(pixels))
    nb["cells"] += [copy.deepcopy(empty), copy.deepcopy(empty)]
    assert cleaned(nb, committed) == as_file(committed)
    nb = {"cells": [empty], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    clean_notebook.clean(nb)
    assert len(nb["cells"]) == 1


def test_broken_pictures_and_files_are_no_reason_to_stop(committed, pixels, tmp_path):
    assert not clean_notebook.same_picture("AAAA", png(pixels)) and not clean_notebook.same_picture("?", "!")
    assert clean_notebook.read(tmp_path / "none.ipynb") is None
    for text in ("", "[]", "{}", '{"cells": 3}'):
        (tmp_path / "broken.ipynb").write_text(text)
        assert clean_notebook.read(tmp_path / "broken.ipynb") is None
    nb = saved_by_lab(committed, "AAAA")
    clean_notebook.clean(nb, before=None)
    assert nb["cells"][2]["outputs"][0]["data"] == {"image/png": "AAAA"}


def lab_server(tmp_path, monkeypatch):
    "The contents manager of `make lab`, over a folder of its own."
    from jupyter_client.kernelspec import KernelSpecManager
    from traitlets.config import Configurable

    monkeypatch.setattr(lab, "NOTEBOOKS", tmp_path / "nbs")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))  # where it would note which notebooks it trusts
    server = Configurable()
    server.kernel_spec_manager = KernelSpecManager()
    return lab.CourseContents(root_dir=str(tmp_path), parent=server)


def test_jupyterlab_is_told_what_the_kernel_says_and_saves_what_was_there(committed, pixels, tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "page.ipynb").write_text(as_file(committed), encoding="utf-8")
    (tmp_path / "scratch.ipynb").write_text(as_file(committed), encoding="utf-8")
    contents = lab_server(tmp_path, monkeypatch)

    async def open_run_save(path):
        model = await contents.get(path)
        spec = contents.parent.kernel_spec_manager.get_kernel_spec("python3")
        told = model["content"]["metadata"]
        kernel = {"display_name": spec.display_name, "language": "python", "name": "python3"}
        assert told["kernelspec"] == kernel and told["language_info"]["version"] == sys.version.split()[0]
        content = saved_by_lab(json.loads(json.dumps(model["content"])), png(pixels, Software="another"))
        await contents.save({"type": "notebook", "content": content}, path)

    asyncio.run(open_run_save("nbs/page.ipynb"))
    assert (tmp_path / "nbs" / "page.ipynb").read_text(encoding="utf-8") == as_file(committed)
    asyncio.run(open_run_save("scratch.ipynb"))  # not a notebook of the course: nobody's business
    assert "language_info" in (tmp_path / "scratch.ipynb").read_text(encoding="utf-8")


def test_what_the_kernel_says_is_what_the_hook_wrote(tmp_path):
    "JupyterLab marks a notebook as changed as soon as the kernel's answer differs from the notebook's."
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        answer = client.kernel_info(reply=True, timeout=60)["content"]["language_info"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    nb = {"metadata": {"kernelspec": {"name": "python3"}}}
    lab.as_the_kernel_says(nb, manager.kernel_spec)
    assert nb["metadata"]["language_info"] == answer


def test_the_settings_of_the_lab_are_defaults_that_jupyterlab_knows():
    "Each setting exists in this JupyterLab: a name that has gone would be ignored without a word."
    from jupyterlab.commands import get_app_dir

    schemas = Path(get_app_dir()) / "schemas" / "@jupyterlab"
    text = (ROOT / "tools" / "jupyter" / "labconfig" / "default_setting_overrides.json").read_text(encoding="utf-8")
    for name, values in json.loads(text).items():
        package, plugin = name.removeprefix("@jupyterlab/").split(":")
        known = json.loads((schemas / package / f"{plugin}.json").read_text(encoding="utf-8"))["properties"]
        assert set(values) <= set(known), name


def test_single_pixels_whose_colour_the_palette_lacked_are_no_other_picture():
    "What another number of threads makes of a photograph under a map; letters and cells of a map count."
    before = np.full((100, 100, 3), 130, dtype=np.uint8)
    specks, cell, letter, many = (before.copy() for _ in range(4))
    specks[[3, 3, 50, 70], [4, 5, 60, 20]] += 60
    cell[10:13, 40:43] += 60
    letter[20, 20:23] = 0
    many[::4, ::4] += 60
    assert clean_notebook.same_picture(png(before), png(specks))
    for other in (cell, letter, many):
        assert not clean_notebook.same_picture(png(before), png(other))
