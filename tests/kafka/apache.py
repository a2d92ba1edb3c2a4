"""Apache Kafka itself, KRaft nodes as child processes. Loaded by `tests/conftest.py`."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import NamedTuple, Self

JARS = Path(__file__).parents[2] / ".kafka" / "libs"
START_SECONDS = 60.0
STOP_SECONDS = 20.0

# No retention: tests write records with old timestamps, which it would delete in the middle of a test.
_PROPERTIES = """
process.roles={roles}
node.id={node}
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},BEHIND://127.0.0.1:{behind}{controls}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},BEHIND://127.0.0.1:{proxy}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,BEHIND:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={data}
num.partitions=1
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
log.cleaner.backoff.ms=100
log.retention.ms=-1
"""

# What is appended where clients must show who they are: a listener for each way, SSL itself asking for a certificate.
_SECURED = """
listeners={listeners}{controls}
advertised.listeners={listeners}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,{protocol_map}
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={truststore}
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
"""
_LOGIN = """
listener.name.{listener}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
listener.name.{listener}.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.{listener}.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""  # noqa: E501 - properties have no line breaks
_TOOLS = {
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-configs.sh": "kafka.admin.ConfigCommand",
    "kafka-console-consumer.sh": "org.apache.kafka.tools.consumer.ConsoleConsumer",
}
_SECURE_PROTOCOLS = ("SSL", "SASL_PLAINTEXT", "SASL_SSL")


class Login(NamedTuple):
    """What broker and client need to trust each other: files in PEM, and the one user that the broker knows."""

    cafile: Path
    keystore: Path
    """The broker's key and certificate, for `localhost`."""
    certfile: Path
    keyfile: Path
    key_password: str
    user: str
    password: str

    @classmethod
    def made_in(cls, folder: Path) -> Self:
        """An authority, the broker's certificate and the client's; new secrets that no other text holds."""
        import trustme
        from cryptography.hazmat.primitives import serialization as pem

        authority = trustme.CA()
        broker, client = authority.issue_cert("localhost"), authority.issue_cert("anabranch@example.org")
        secrets = [uuid.uuid4().hex for _ in range(2)]
        files = (folder / name for name in ("ca.pem", "broker.pem", "client.pem", "client.key"))
        made = cls(*files, secrets[0], "alice", secrets[1])
        authority.cert_pem.write_to_path(made.cafile)
        client.cert_chain_pems[0].write_to_path(made.certfile)
        # Java reads PKCS 8 only, which trustme does not write.
        for identity, path, protection in (
            (broker, made.keystore, pem.NoEncryption()),
            (client, made.keyfile, pem.BestAvailableEncryption(made.key_password.encode())),
        ):
            key = pem.load_pem_private_key(identity.private_key_pem.bytes(), None)
            path.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, protection))
        with made.keystore.open("ab") as file:
            file.write(broker.cert_chain_pems[0].bytes())
        return made


def why_not() -> str:
    """What is missing to run it; empty where nothing is."""
    if not any(JARS.glob("kafka_2.13-*.jar")):
        return "the jars of Apache Kafka are absent: run `make kafka`"
    return "" if shutil.which("java") else "Java is absent: install a JRE, version 17 or newer"


class ApacheKafka:
    """One broker on random ports with a temporary folder; :meth:`restart` keeps port and records.

    A second listener, at port ``behind``, tells its clients to come by port ``proxy``, where a test may listen.

    :param login: adds a listener on `localhost` for SSL, SASL_PLAINTEXT and SASL_SSL each: ``servers[protocol]``.
    :param beside: makes it the second broker of that one's cluster, which stays the only controller.
    """

    def __init__(self, login: Login | None = None, beside: Self | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="anabranch-kafka-"))
        self._port, controller, self.behind, self.proxy = (_free_port() for _ in range(4))
        # Not a leading "-": it would be read as an option.
        self._cluster = "A" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        controls = f",CONTROLLER://127.0.0.1:{controller}"
        self._controller = controller
        if beside is not None:
            controller, controls, self._cluster = beside._controller, "", beside._cluster
        self._properties = self._folder / "server.properties"
        text = _PROPERTIES.format(
            roles="broker" if beside else "broker,controller", node=2 if beside else 1,
            port=self._port, controller=controller, controls=controls,
            behind=self.behind, proxy=self.proxy, data=self._folder / "data",
        )  # fmt: skip
        self._scram: list[str] = []
        self.servers = {"PLAINTEXT": self.bootstrap_servers}
        self.login = login
        if login is not None:
            self.servers |= {protocol: f"localhost:{_free_port()}" for protocol in _SECURE_PROTOCOLS}
            text += _SECURED.format(
                listeners=",".join(f"{protocol}://{address}" for protocol, address in self.servers.items()),
                controls=controls,
                protocol_map=",".join(f"{protocol}:{protocol}" for protocol in _SECURE_PROTOCOLS),
                keystore=login.keystore,
                truststore=login.cafile,
            )
            for listener in ("sasl_plaintext", "sasl_ssl"):
                text += _LOGIN.format(listener=listener, user=login.user, password=login.password)
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                self._scram += ["--add-scram", f"{mechanism}=[name={login.user},password={login.password}]"]
        self._properties.write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> Self:
        if not (self._folder / "data").exists():
            arguments = ["format", "--cluster-id", self._cluster, "--config", str(self._properties)]
            arguments += self._scram
            subprocess.run(self._java("kafka.tools.StorageTool", *arguments), check=True, capture_output=True)
        output = self._folder / "output.txt"
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(self._properties)), stdout=file, stderr=file, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self._port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = output.read_text(errors="replace")[-3000:]
                self.stop()
                raise RuntimeError(f"Apache Kafka did not start. It said:\n{said}")
            time.sleep(0.1)
        return self

    def restart(self) -> None:
        self.halt()
        self.start()

    def halt(self) -> None:
        """Stop; :meth:`start` goes on with the same port and records."""
        self._end_process()

    def stop(self) -> None:
        self._end_process()
        shutil.rmtree(self._folder, ignore_errors=True)

    def tool(self, script: str, *arguments: str) -> str:
        """What a script of Kafka's, such as `kafka-topics.sh`, prints."""
        command = self._java(_TOOLS[script], *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def leader_epochs(self, topic: str) -> list[int]:
        """Those under which the first partition has records; each restart begins another."""
        lines = (self._folder / "data" / f"{topic}-0" / "leader-epoch-checkpoint").read_text().splitlines()
        return [int(line.split()[0]) for line in lines[2:]]

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _java(self, *command: str) -> list[str]:
        return [
            "java", "-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{JARS}{os.sep}*", *command,
        ]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
