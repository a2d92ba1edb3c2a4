"""What the commands show of the log."""

import subprocess
import sys

PROGRAM = """
import logging
from cli._logging import log_to_stderr
log_to_stderr()
for name in ("anabranch.learn", "streamer.sources.kafka", "learner.snapshot"):
    logging.getLogger(name).info("own line of %s", name)
for name in ("kafka.coordinator", "streamer.sources.confluent.librdkafka"):
    logging.getLogger(name).info("chatter of %s", name)
    logging.getLogger(name).warning("warning of %s", name)
"""


def test_our_own_lines_are_shown_from_info_and_those_of_kafkas_clients_from_warning() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [line.partition(": ")[2] for line in done.stderr.splitlines()]
    assert lines == [
        "own line of anabranch.learn",
        "own line of streamer.sources.kafka",
        "own line of learner.snapshot",
        "warning of kafka.coordinator",
        "warning of streamer.sources.confluent.librdkafka",
    ]
