"""``python -m mrirecon``."""

from mrirecon.cli import main

main()
