"""The tree that was read from a guest's disk: what it has in the place of a file is not followed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from activities.artifacts.tree import open_regular
from foundation.errors import InvalidParameter


def test_only_regular_files_of_the_workspace_are_opened(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (tmp_path / "outside").write_text("secret")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "dirlink").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "socket"))
    for path in ("link", "dirlink/outside", "pipe", "socket", "dir", "../outside", "/etc/passwd", "", "dir/../../x"):
        with pytest.raises(InvalidParameter):
            open_regular(root, path)
    with pytest.raises(FileNotFoundError):
        open_regular(root, "dir/nothing")
