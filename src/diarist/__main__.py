"""`python -m diarist`: the command."""

from diarist.cli import main

if __name__ == "__main__":
    main()
