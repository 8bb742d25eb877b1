"""`python -m dnas`."""

from dnas.cli import main

if __name__ == "__main__":
    main()
