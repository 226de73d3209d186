"""The `kvctl` command line."""


def main() -> None:
    """Run a command; an error is printed as a sentence, not as a traceback."""
    from .app import main as run  # here: the doctor runs where its packages are missing

    run()
