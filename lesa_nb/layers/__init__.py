"""The layer and its parts."""

# They register their ways to attend, so that a context term finds each by its name.
from . import blockwise, context  # noqa: F401
