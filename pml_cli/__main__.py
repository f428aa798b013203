"""`python -m pml_cli` is `pml`."""

from pml_cli.cli import main

if __name__ == "__main__":
    main()
