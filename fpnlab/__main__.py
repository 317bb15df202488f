"""``python -m fpnlab``: the command ``fpnlab``."""

from fpnlab.cli.main import main

if __name__ == "__main__":
    main(prog_name="fpnlab")
