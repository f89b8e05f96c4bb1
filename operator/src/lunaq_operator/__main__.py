"""`python -m lunaq_operator` is `lunaq`."""

from lunaq_operator.cli import main

if __name__ == "__main__":
    main(prog_name="lunaq")
