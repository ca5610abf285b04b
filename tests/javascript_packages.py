"""Installs what the JavaScript example needs, once for all test runs, under build/."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "javascript"
FILES = ("package.json", "package-lock.json")


def install() -> Path | str:
    """The directory `node_modules`, or the reason why there is none."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "node and npm are not installed"
    digest = hashlib.sha256(b"".join((EXAMPLE / name).read_bytes() for name in FILES)).hexdigest()[:16]
    home = ROOT / "build" / "javascript-packages" / digest
    if not home.exists():
        staged = home.with_name(f"{digest}.{os.getpid()}")
        staged.mkdir(parents=True)
        for name in FILES:
            shutil.copy(EXAMPLE / name, staged / name)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        done = subprocess.run(command, cwd=staged, capture_output=True, text=True, timeout=240)
        if done.returncode:
            shutil.rmtree(staged)
            return f"npm installs nothing here: {done.stderr.strip()[-300:]}"
        try:
            staged.rename(home)
        except OSError:  # another process was faster
            shutil.rmtree(staged)
    return home / "node_modules"
