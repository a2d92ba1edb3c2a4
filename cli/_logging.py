"""How the commands log: one line each, to standard error."""

import logging


def log_to_stderr() -> None:
    """Show Anabranch's own lines from INFO, everybody else's from WARNING."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("anabranch").setLevel(logging.INFO)
