"""`anabranch learn` that is asked to stop before there is a broker."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0


def test_a_wait_for_an_absent_broker_ends_within_seconds_and_well(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text(
        f'[kafka]\nbootstrap_servers = "127.0.0.1:1"\n[snapshot]\ndirectory = "{(tmp_path / "s").as_posix()}"\n'
    )
    output = tmp_path / "output.txt"
    with output.open("wb") as file:
        learn = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "learn", "-c", str(config)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "waiting for a Kafka broker" not in output.read_text():
            assert learn.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        learn.send_signal(signal.SIGTERM)
        assert learn.wait(5) == 0, output.read_text()
    finally:
        learn.kill()
        learn.wait()
    assert re.search(r"Asked to stop while waiting .*127\.0\.0\.1:1", output.read_text())
