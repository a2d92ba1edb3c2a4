"""The pages hold what the deployment uses."""

import ast
import importlib.util
import re
from pathlib import Path

from learner.snapshot import SnapshotDamagedError, SnapshotLockedError

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| `(anabranch_\w+)` \| (counter|gauge|histogram) \|(.*?)\| (.+?) \| (\w+) \|$", re.MULTILINE)


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every metric in the table of docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _, _ in ROW.findall(text)}


def used() -> dict[str, set[str]]:
    """Every series name in the deployment's files, by the files that name it."""
    found: dict[str, set[str]] = {}
    for file in sorted((ROOT / "deploy").rglob("*")):
        if file.suffix in {".yml", ".json"}:
            for name in re.findall(r"\banabranch_\w+", file.read_text(encoding="utf-8")):
                found.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    return found


def series(name: str, kind: str) -> set[str]:
    """The names under which Prometheus stores a metric."""
    return {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}


def test_every_row_of_the_metrics_table_is_read() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert len(documented()) == text.count("\n| `anabranch_")


def test_every_metric_in_the_deployment_is_documented() -> None:
    known = {name for metric, (kind, _) in documented().items() for name in series(metric, kind)}
    assert {name: files for name, files in used().items() if name not in known} == {}


def test_every_documented_metric_is_seen_on_the_dashboard() -> None:
    dashboard = {name for name, files in used().items() if any("dashboards" in file for file in files)}
    unseen = {metric for metric, (kind, _) in documented().items() if not series(metric, kind) & dashboard}
    assert unseen == set()


def test_every_label_a_query_selects_by_is_a_label_of_that_metric() -> None:
    labels = {name: names for metric, (kind, names) in documented().items() for name in series(metric, kind)}
    for file in [ROOT / "deploy/prometheus/alerts.yml", ROOT / "deploy/grafana/dashboards/anabranch.json"]:
        text = file.read_text(encoding="utf-8").replace('\\"', '"')
        for name, selector in re.findall(r"(anabranch_\w+)\{([^}]*)\}", text):
            selected = set(re.findall(r"(\w+)\s*(?:=~|!=|=)", selector))
            assert selected <= labels[name], f"{file.name}: {name} has no label {selected - labels[name]}"


def test_metric_names_follow_prometheus_conventions() -> None:
    for name, (kind, labels) in documented().items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert not labels & {"user", "item", "user_id", "item_id", "le", "job", "instance"}, name
        assert not re.search(r"_(ms|milliseconds|kb|mb|mib)(_|$)", name), name


def test_every_test_that_the_table_of_faults_names_is_there() -> None:
    table = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").partition("## Faults")[2].partition("\n##")[0]
    rows = [line.rstrip("| ").rpartition(" | ")[2] for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`([a-z_]+/test_\w+\.py)`(?:: ([^`;,|]+?)…)?", row)
        assert named, f"no test: {row}"
        for file, title in named:
            path = ROOT / "tests" / file
            assert path.is_file(), row
            tests = " ".join(re.findall(r"def test_(\w+)", path.read_text(encoding="utf-8"))).replace("_", " ")
            assert title in tests, f"{file} has no test `{title}…`"


def log_lines() -> dict[str, str]:
    """The longest fixed piece of every line that is logged from INFO on, and where it is."""
    found = {}
    for package in ("contracts", "features", "streamer", "learner", "serving", "cli"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                match node:
                    case ast.Call(
                        func=ast.Attribute(
                            value=ast.Name(id="log" | "logger") | ast.Call(func=ast.Attribute(attr="getLogger")),
                            attr="info" | "warning" | "error" | "exception" | "critical",
                        ),
                        args=[ast.Constant(value=str(line)), *_],
                    ):
                        pieces = re.split(r"`?%[-0-9.]*[a-z]`?", line)
                        found[max(pieces, key=len).strip()] = f"{file.relative_to(ROOT)}:{node.lineno}"
    return found


def test_every_line_that_is_logged_is_in_the_operations_guide() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## Log lines")[2].partition("\n## ")[0]
    assert len(log_lines()) > 30
    assert {piece: place for piece, place in log_lines().items() if piece and piece not in table} == {}


ENDING = {
    "BrokerError",
    "DeadLetterError",
    "IngestProcessError",
    "OffsetsLostError",
    "OtherSettingsError",
    "SnapshotError",
    "SnapshotSupersededError",
}
"""The errors that end `learn`, beside those of settings, of the disk and of a damaged or locked store."""
ELSEWHERE = (
    "embedded broker",
    "is in use. Stop what listens there",
    "cannot be started",
    "no dead letters yet",
    "Dead letters cannot",
)
"""In lines of these errors that only `broker`, `demo` and `resend` can end with."""


def ending_lines() -> dict[str, list[str]]:
    """By place, the fixed pieces of each error that ends `learn`, the longest first."""
    found = {}
    for package in ("streamer", "learner", "cli"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                match node:
                    case ast.Call(func=ast.Name(id=name), args=[text, *_]) if name in ENDING:
                        texts = [one.value for one in ast.walk(text) if isinstance(one, ast.Constant)]
                        pieces = [piece for one in texts if isinstance(one, str) for piece in re.split("`", one)]
                        told = sorted((piece.strip() for piece in pieces), key=len, reverse=True)
                        # An error passed on has no words of its own.
                        if len(told[0] if told else "") > 5 and not any(no in " ".join(told) for no in ELSEWHERE):
                            found[f"{file.relative_to(ROOT)}:{node.lineno}"] = told
    return found


def test_every_line_that_learn_ends_with_is_in_the_operations_guide() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## Lines it ends with")[2].partition("\n## ")[0]
    assert len(ending_lines()) > 20
    unknown = {
        place: pieces
        for place, pieces in ending_lines().items()
        if not any(len(piece) >= 10 and piece in table for piece in pieces)
    }
    assert unknown == {}
    for error in (SnapshotLockedError(Path("snapshots"), "process 1"), SnapshotDamagedError(1, "a", "b")):
        told = str(error).replace("snapshots", "…").replace("process 1", "…").replace("00000001", "…")
        assert told[:24].partition(" a:")[0] in table, told


def pages() -> dict[str, str]:
    """The text of every page that people read: READMEs and docs, by its path."""
    files = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


def test_every_picture_a_page_shows_is_there() -> None:
    shown = {
        (page, picture)
        for page, text in pages().items()
        for names in re.findall(r"!\[[^\]]*\]\(([^)\s]+)|<img[^>]*\bsrc=\"([^\"]+)\"", text)
        for picture in names
        if picture and not picture.startswith("http")
    }
    assert ("docs/operations.md", "soak.svg") in shown
    assert {(page, picture) for page, picture in shown if not (ROOT / page).parent.joinpath(picture).is_file()} == set()


def test_every_benchmark_a_page_names_can_be_run() -> None:
    named = {
        (page, module)
        for page, text in pages().items()
        for module in re.findall(r"python -m (benchmarks(?:\.\w+)*)", text)
    }
    assert len({module for _, module in named}) > 10
    for page, module in sorted(named):
        found = importlib.util.find_spec(module)
        assert found is not None, f"{page}: no module {module}"
        if found.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{module}.__main__") is not None, f"{page}: {module} cannot be run"
