"""``python -m ctrecon``."""

from ctrecon.cli import main

main()
