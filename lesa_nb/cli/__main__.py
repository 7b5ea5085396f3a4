"""`python -m lesa_nb.cli` is the command `lesa`; torchrun starts it this way."""
import sys

from lesa_nb.cli.app import main

sys.exit(main())
