"""`python -m phisense` is the command `phisense`."""

from .cli import main

if __name__ == "__main__":
    main()
