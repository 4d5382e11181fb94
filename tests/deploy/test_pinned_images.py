"""`deploy/pin.sh`: the compose file's images by the digests that docker or skopeo say, renewed by running it again."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from deploy_files import COMPOSE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "pin.sh"
IMAGES = {"BASE_IMAGE", "PROMETHEUS_IMAGE", "GRAFANA_IMAGE"}
FAKES = {
    "docker": '[ "$1 $2 $3" = "buildx imagetools inspect" ] && image=$4',
    "skopeo": '[ "$1" = inspect ] && image=${4#docker://}',
}


def digest(image: str) -> str:
    return f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"


def pinned(folder: Path, program: str, *arguments: str, say: str = "") -> subprocess.CompletedProcess[str]:
    """The script, with a program in place of docker or skopeo that knows a digest for each name."""
    said = say or 'echo sha256:$(printf %s "$image" | sha256sum | cut -c1-64)'
    (folder / program).write_text(f"#!/bin/sh\n{FAKES[program]} || exit 3\n{said}\n", encoding="utf-8")
    (folder / program).chmod(0o755)
    for name in ("dirname", "sed", "grep", "sha256sum", "cut", "printf"):
        if not (folder / name).exists():
            (folder / name).symlink_to(next(p / name for p in map(Path, ("/usr/bin", "/bin")) if (p / name).exists()))
    return subprocess.run(
        [str(SCRIPT), *arguments], env={**os.environ, "PATH": str(folder)}, capture_output=True, encoding="utf-8",
        timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("program", FAKES)
def test_every_image_is_pinned_by_its_digest(program: str, tmp_path: Path) -> None:
    done = pinned(tmp_path, program)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if not line.startswith("#"))
    assert found.keys() == IMAGES
    text = COMPOSE.read_text(encoding="utf-8")
    for variable, image in found.items():
        (tagged,) = set(re.findall(rf"\$\{{{variable}:-([^}}]+)\}}", text))
        assert image == f"{tagged.rpartition(':')[0]}@{digest(tagged)}" and f"# {tagged}" in done.stdout
    others = set(re.findall(r"^\s*image: (.*)$", text, re.MULTILINE))
    assert all(re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[^}]+\}", each) for each in others), "no image that cannot be pinned"


def test_one_image_is_pinned_alone(tmp_path: Path) -> None:
    done = pinned(tmp_path, "docker", "GRAFANA_IMAGE")
    assert [line for line in done.stdout.splitlines() if line.startswith("#")] == ["# grafana/grafana:12.1.0"]


@pytest.mark.parametrize("said", ["echo latest", "echo", "exit 1", "echo sha256:12"])
def test_what_is_no_digest_pins_nothing(said: str, tmp_path: Path) -> None:
    done = pinned(tmp_path, "docker", say=said)
    assert done.returncode != 0 and "@" not in done.stdout
