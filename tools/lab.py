"""JupyterLab as this project wants it: it opens at the start of the course, and a saved notebook is a clean one.

    python tools/lab.py                # what `make lab` runs
    python tools/lab.py --no-browser   # arguments are JupyterLab's

* A notebook that is opened and closed has not been changed: the file does not hold what the kernel says of itself, so
  JupyterLab would note it down and ask whether to save that. Here it is told with the notebook.
* A save writes what clean_notebook.py keeps, so running and saving leaves git clean. Only for notebooks in nbs/.
* An image has the alternative text that its output holds: jupyter/labextensions.
* The file browser has room for names, and no question about news stands in front of the first page: see
  jupyter/labconfig, defaults that your own settings override.
"""

import os
import sys
from pathlib import Path

import clean_notebook
from ipykernel.ipkernel import IPythonKernel
from jupyter_client import KernelManager
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
NOTEBOOKS = ROOT / "nbs"


def clean_on_save(model, path, contents_manager, **_):
    "JupyterLab calls this before it writes a file: of a notebook of the course stays what its file keeps."
    file = Path(contents_manager._get_os_path(path)).resolve()
    if model["type"] == "notebook" and NOTEBOOKS in file.parents:
        clean_notebook.clean(model["content"], before=clean_notebook.read(file))


def as_the_kernel_says(nb, spec):
    "Note in an opened notebook what JupyterLab would note itself when the kernel `spec` has started."
    kernel = nb["metadata"].get("kernelspec", {})
    if kernel.get("name") == "python3":
        kernel.update(display_name=spec.display_name, language=spec.language)
        nb["metadata"]["language_info"] = dict(IPythonKernel.language_info)


class CourseContents(AsyncLargeFileManager):
    "The files of the project, notebooks as JupyterLab and git both like them."

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_pre_save_hook(clean_on_save)

    async def get(self, path, *args, **kwargs):
        model = await super().get(path, *args, **kwargs)
        if model["type"] == "notebook" and model["content"]:
            as_the_kernel_says(model["content"], self.parent.kernel_spec_manager.get_kernel_spec("python3"))
        return model


def main(arguments):
    os.chdir(ROOT)  # nbdev looks for settings.ini from here
    settings = [str(TOOLS / "jupyter"), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(settings)
    from jupyterlab.labapp import main as lab  # now that the settings can be found

    options = {
        "ServerApp.root_dir": ROOT,
        "ServerApp.contents_manager_class": "lab.CourseContents",
        "FileContentsManager.preferred_dir": NOTEBOOKS,
        "LabApp.default_url": "/lab/tree/nbs/index.ipynb",
        "LabApp.extra_labextensions_path": TOOLS / "jupyter" / "labextensions",
        # Jupyter Server waits three intervals for an answer to a ping, and Tornado warns: at most one is allowed.
        "ServerApp.tornado_settings": {"ws_ping_timeout": 30_000},
    }
    if "transport_encryption" in KernelManager.class_trait_names():  # newer kernels warn where nobody asks for it
        options["KernelManager.transport_encryption"] = "auto"
    return lab([*(f"--{name}={value}" for name, value in options.items()), *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
