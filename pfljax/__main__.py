"""`python -m pfljax`: the command `pfljax`, without its script on the path."""

from pfljax.cli.main import main

if __name__ == "__main__":
    main()
