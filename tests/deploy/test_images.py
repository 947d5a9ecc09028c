"""Tests of the Dockerfile, the Compose file and Prometheus' configuration, read as text."""

import json
import re
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[2] / "deploy"
ROOT = FOLDER.parent
DOCKERFILE = (FOLDER / "Dockerfile").read_text()


def instructions(name):
    """Return the arguments of each instruction of a kind, in order."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", joined, re.MULTILINE)


def test_the_image_copies_what_the_package_is_built_from():
    copied = [each for line in instructions("COPY") for each in line.split()[:-1]]
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    project = (ROOT / "pyproject.toml").read_text()
    for name in ("README.md", "LICENSE"):  # the project's description and licence
        assert f'"{name}"' in project
        assert name in copied


def test_the_image_serves_as_an_ordinary_user():
    assert instructions("USER") == ["medusa"]
    assert DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("\nENTRYPOINT ")
    program, command, *options = json.loads(instructions("ENTRYPOINT")[0])
    assert (program, command) == ("medusa", "serve")
    port = options[options.index("--port") + 1]
    assert instructions("EXPOSE") == [port]
    assert f"127.0.0.1:{port}/health" in DOCKERFILE
    help_text = (ROOT / "src/medusa/cli/serve.py").read_text()
    for option in options[::2]:
        assert f"    {option.removeprefix('--')}: " in help_text


def test_prometheus_reads_the_server_of_the_compose_file():
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    build = compose["services"]["medusa"]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).is_file()
    mounted = compose["services"]["prometheus"]["volumes"][0].split(":")[0]
    scraped = yaml.safe_load((FOLDER / mounted).read_text())["scrape_configs"][0]
    port = instructions("EXPOSE")[0]
    assert scraped["static_configs"] == [{"targets": [f"medusa:{port}"]}]
    assert f"127.0.0.1:{port}:{port}" in compose["services"]["medusa"]["ports"]
    used = {v.split(":")[0] for each in compose["services"].values() for v in each["volumes"]}
    assert set(compose["volumes"]) == {each for each in used if not each.startswith(".")}
