"""How a file is written in one go, and how files of tensors are written and read."""
