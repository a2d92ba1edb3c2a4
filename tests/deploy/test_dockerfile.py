"""The image: small, unprivileged, pinned, and built from files that exist and are let through .dockerignore."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = re.sub(r"\\\n\s*", "", (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8"))
INSTRUCTIONS = [
    (words[0], words[1]) for line in TEXT.splitlines() if line and line[0] != "#" for words in [line.split(None, 1)]
]
FINAL = INSTRUCTIONS[max(i for i, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]


def values(name: str, instructions: list[tuple[str, str]] = INSTRUCTIONS) -> list[str]:
    return [value for instruction, value in instructions if instruction == name]


def copied() -> list[str]:
    """What the build takes from the repository."""
    return [source for value in values("COPY") if "--from" not in value for source in value.split()[:-1]]


def test_the_image_is_built_in_two_stages_on_a_named_python() -> None:
    assert len(values("FROM")) == 2
    assert re.search(r"PYTHON_IMAGE=python:3\.\d+-slim", TEXT)


def test_the_process_runs_as_an_ordinary_user() -> None:
    users = values("USER", FINAL)
    assert users
    assert users[-1] != "root"


@pytest.mark.parametrize("name", ["ENTRYPOINT", "CMD"])
def test_signals_reach_the_process(name: str) -> None:
    """The exec form: the shell form would put a shell between `docker stop` and the learner's last snapshot."""
    assert all(value.startswith("[") for value in values(name, FINAL))
    assert values(name, FINAL)


def test_the_image_has_a_health_check() -> None:
    assert values("HEALTHCHECK", FINAL)


def test_compiled_loops_are_cached_where_the_user_may_write() -> None:
    folder = re.search(r"NUMBA_CACHE_DIR=(\S+)", TEXT)
    assert folder
    assert re.search(rf"install -d -o anabranch .*{folder[1]}", TEXT)
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    # The root file system is read-only there: without a volume numba would have nowhere to write.
    for name in ("learner", "scorer", "simulator"):
        assert any(volume.endswith(f":{folder[1]}") for volume in compose["services"][name]["volumes"]), name


def test_every_package_is_copied_and_installed_at_the_pinned_versions() -> None:
    packages = {file.parent.name for file in ROOT.glob("*/py.typed")}
    assert packages
    assert packages <= set(copied())
    assert all("-c constraints.txt" in value or "torch==" in value for value in values("RUN") if "pip install" in value)


def test_what_is_copied_exists_and_passes_dockerignore() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    for source in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source


def test_the_torch_index_is_a_build_argument() -> None:
    assert any(value.startswith("TORCH_INDEX=") for value in values("ARG"))


def test_files_that_are_no_python_are_packaged_too() -> None:
    """The image installs a wheel, not this folder: what `package-data` does not name is missing there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns: dict[str, list[str]] = project["tool"]["setuptools"]["package-data"]
    for package in {file.parent for file in ROOT.glob("*/py.typed")}:
        packaged = {
            file for key in (package.name, "*") for glob in patterns.get(key, []) for file in package.glob(glob)
        }
        data = {file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
        missing = {str(file.relative_to(ROOT)) for file in data - packaged if file.suffix != ".py"}
        assert missing == set(), f"not in [tool.setuptools.package-data]: {sorted(missing)}"
