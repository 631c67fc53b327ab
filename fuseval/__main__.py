"""``python -m fuseval``: the command line."""

from fuseval.cli import main

if __name__ == "__main__":
    main()
