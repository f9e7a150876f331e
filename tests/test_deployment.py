"""The manifests in the documentation: read strictly, and the commands in them run."""

import configparser
import json
import re
import shlex
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.app import make_app, work_until_sigterm
from tests.support.own_server import quiet_port
from tests.support.pages import Block, blocks_of
from tests.support.processes import Processes

PAGE = Path(__file__).parent.parent / "docs" / "deployment.md"
PROGRAM = "graphile-worker-py"

DURATION = r"(\d+(h|m|s))+"
NUMBER = r"\d+"
TEXT = r".+"

# Of systemd.unit(5), systemd.service(5), systemd.exec(5) and systemd.kill(5), what a worker needs.
UNIT: dict[str, dict[str, str]] = {
    "Unit": {
        "Description": TEXT,
        "Documentation": TEXT,
        "After": r"(\S+\.(target|service)\s?)+",
        "Wants": r"(\S+\.(target|service)\s?)+",
        "StartLimitIntervalSec": NUMBER,
        "StartLimitBurst": NUMBER,
    },
    "Service": {
        "Type": "simple|exec|forking|oneshot|dbus|notify|notify-reload|idle",
        "User": r"[a-z_][a-z0-9_-]*",
        "WorkingDirectory": r"/\S*",
        "Environment": r"\S+=\S*",
        "EnvironmentFile": r"-?/\S+",
        "ExecStart": r"/\S+ .+",
        "KillMode": "control-group|mixed|process|none",
        "TimeoutStopSec": NUMBER,
        "Restart": "no|on-success|on-failure|on-abnormal|on-watchdog|on-abort|always",
        "RestartSec": NUMBER,
        "RestartPreventExitStatus": r"(\d+ ?)+",
        "WatchdogSec": NUMBER,
        "NotifyAccess": "none|main|exec|all",
    },
    "Install": {"WantedBy": r"\S+\.target"},
}

# A schema: a pattern for a scalar, a list with the schema of its items, or a mapping by key, where
# "*" stands for any other key. A key with "!" must be there.
PROBE: Any = {
    "exec": {"!command": [TEXT]},
    "httpGet": {"!path": r"/\S*", "!port": TEXT},
    "initialDelaySeconds": NUMBER,
    "periodSeconds": NUMBER,
    "timeoutSeconds": NUMBER,
    "failureThreshold": NUMBER,
}
CONTAINER: Any = {
    "!name": TEXT,
    "!image": TEXT,
    "command": [TEXT],
    "args": [TEXT],
    "env": [
        {
            "!name": r"[A-Z_]+",
            "value": TEXT,
            "valueFrom": {"secretKeyRef": {"!name": TEXT, "!key": TEXT}},
        }
    ],
    "ports": [{"name": TEXT, "!containerPort": NUMBER}],
    "livenessProbe": PROBE,
    "readinessProbe": PROBE,
    "startupProbe": PROBE,
}
DEPLOYMENT: Any = {
    "!apiVersion": "apps/v1",
    "!kind": "Deployment",
    "!metadata": {"!name": TEXT, "labels": {"*": TEXT}},
    "!spec": {
        "replicas": NUMBER,
        "!selector": {"!matchLabels": {"*": TEXT}},
        "!template": {
            "!metadata": {"!labels": {"*": TEXT}},
            "!spec": {
                "terminationGracePeriodSeconds": NUMBER,
                "!containers": [CONTAINER],
            },
        },
    },
}
COMPOSE: Any = {
    "!services": {
        "*": {
            "build": TEXT,
            "image": TEXT,
            "command": [TEXT],
            "environment": {"*": TEXT},
            "stop_grace_period": DURATION,
            "restart": "no|always|on-failure(:[0-9]+)?|unless-stopped",
            "depends_on": {"*": {"!condition": "service_(started|healthy|completed_successfully)"}},
            "healthcheck": {
                "!test": [TEXT],
                "interval": DURATION,
                "timeout": DURATION,
                "start_period": DURATION,
                "retries": NUMBER,
            },
        }
    }
}


class StrictLoader(yaml.SafeLoader):
    """Reads YAML, but no mapping with a key that stands there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Read a mapping."""
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands there twice in {keys}"
        return super().construct_mapping(node, deep)


def block_of(language: str, containing: str = "") -> Block:
    """The only block of a language on the page in which a text stands."""
    blocks = [block for block in blocks_of(PAGE) if block.language == language]
    (found,) = [block for block in blocks if containing in block.text]
    return found


def unit() -> configparser.ConfigParser:
    """The systemd unit; a key that stands there twice is refused."""
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(block_of("ini").text)
    return parser


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile."""
    lines = block_of("dockerfile").text.replace("\\\n", " ").splitlines()
    words = [line.split(maxsplit=1) for line in lines if line.strip() and line[0] != "#"]
    return [(name, rest) for name, rest in words]


def manifest(kind: str) -> Any:
    """A YAML block in which a text stands."""
    return yaml.load(block_of("yaml", kind).text, StrictLoader)


def deployment_container() -> Any:
    """The worker's container in the Kubernetes manifest."""
    (container,) = manifest("kind: Deployment")["spec"]["template"]["spec"]["containers"]
    return container


def assert_fits(schema: Any, value: Any, where: str = "") -> None:
    """Check a value of a manifest."""
    match schema:
        case str():
            # Kubernetes and Compose tell numbers and texts apart, where they are for programs.
            assert isinstance(value, int if schema == NUMBER else str), f"{where}: {value!r}"
            assert re.fullmatch(schema, str(value)), f"{where}: {value!r}"
        case [item]:
            assert isinstance(value, list), f"{where}: {value!r} is no list"
            for number, each in enumerate(value):
                assert_fits(item, each, f"{where}[{number}]")
        case dict():
            assert isinstance(value, dict), f"{where}: {value!r} is no mapping"
            needed = {key[1:] for key in schema if key[0] == "!"}
            known = {key.removeprefix("!"): below for key, below in schema.items()}
            assert needed <= set(value), f"{where}: {needed - set(value)} is missing"
            for key, each in value.items():
                below = known.get(key, known.get("*"))
                assert below is not None, f"{where}: there is no {key!r}"
                assert_fits(below, each, f"{where}.{key}")


def test_the_unit_has_only_what_systemd_knows() -> None:
    read = unit()
    assert read.sections() == list(UNIT)
    for section in read.sections():
        for name, value in read[section].items():
            assert name in UNIT[section], f"[{section}] has no {name}"
            assert re.fullmatch(UNIT[section][name], value), f"{name}={value}"
    # What another start would not mend.
    assert read["Service"]["RestartPreventExitStatus"].split() == ["2", "57"]


def test_the_dockerfile_has_only_what_docker_knows() -> None:
    known = ("FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "ARG", "EXPOSE", "HEALTHCHECK", "CMD")
    names = [name for name, _ in instructions()]
    assert names[0] == "FROM"
    assert set(names) <= set(known)
    assert (names.count("CMD"), names[-1]) == (1, "CMD")


def test_the_compose_file_has_only_what_compose_knows() -> None:
    services = manifest("services:")
    assert_fits(COMPOSE, services)
    for service in services["services"].values():
        assert ("build" in service) != ("image" in service)
        for name in service.get("depends_on", {}):
            assert "healthcheck" in services["services"][name]


def test_the_deployment_has_only_what_kubernetes_knows() -> None:
    deployment = manifest("kind: Deployment")
    assert_fits(DEPLOYMENT, deployment)
    spec = deployment["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 30


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spec": {"replica": 2}}, "there is no 'replica'"),
        ({"spec": {"replicas": "2"}}, "spec.replicas: '2'"),
        ({"kind": "Pod"}, "kind: 'Pod'"),
    ],
)
def test_a_manifest_that_is_wrong_is_found(wrong: dict[str, Any], message: str) -> None:
    schema = {key.removeprefix("!"): below for key, below in DEPLOYMENT.items()}
    schema["spec"] = {key.removeprefix("!"): below for key, below in schema["spec"].items()}
    with pytest.raises(AssertionError, match=re.escape(message)):
        assert_fits(schema, wrong)


def command_of(place: str) -> list[str]:
    """The words with which a worker is started."""
    match place:
        case "systemd":
            return shlex.split(unit()["Service"]["ExecStart"])
        case "container":
            words = json.loads(dict(instructions())["CMD"])
            assert all(isinstance(word, str) for word in words)
            return list(words)
    container = deployment_container()
    return [*container["command"], *container.get("args", [])]


@pytest.mark.parametrize("place", ["systemd", "container", "kubernetes"])
def test_a_worker_that_is_started_so_works_and_ends_well_by_sigterm(
    place: str, dsn: str, tmp_path: Path, processes: Processes
) -> None:
    make_app(tmp_path)
    program, *arguments = command_of(place)
    assert Path(program).name == PROGRAM
    # In a container the port is always free.
    arguments = [re.sub("^8080$", str(quiet_port()), argument) for argument in arguments]
    command = [str(Path(sys.executable).parent / PROGRAM), *arguments]
    process = work_until_sigterm(processes, command, folder=tmp_path, dsn=dsn)
    lines = [json.loads(line) for line in process.stderr.splitlines()]
    assert lines[-1]["event"] == "Stopped"
