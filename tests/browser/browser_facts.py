"""What the tests in the browser share."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DESK, PHONE = {"width": 1300, "height": 850}, {"width": 390, "height": 844}  # sizes of the window
TOKEN = "of-the-tests"  # JupyterLab's password
