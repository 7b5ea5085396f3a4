"""The command `lesa`: every task of the library from a terminal."""
from lesa_nb.cli.app import main

__all__ = ["main"]
