"""``python -m fpnlab``: the command ``fpnlab``."""

from fpnlab.cli import main

if __name__ == "__main__":
    main(prog_name="fpnlab")
