"""How the commands log: one line each, to standard error."""

import logging

OURS = ("anabranch", "contracts", "features", "streamer", "learner", "serving", "cli")


def log_to_stderr() -> None:
    """Show Anabranch's own lines from INFO, everybody else's from WARNING, librdkafka's among them."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("streamer.sources.confluent.librdkafka").setLevel(logging.WARNING)
