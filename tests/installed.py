"""The wheel, built from this tree and installed in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def wheel_in(folder: Path) -> Path:
    """Build the wheel."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=120)
    return next(folder.glob("*.whl"))


def python_with(wheel: Path, folder: Path) -> Path:
    """The interpreter of an environment with the wheel in it; what it depends on is lent by this one's."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(command, check=True, timeout=120)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A directory named in a .pth file is searched, but .pth files in it are not read: an editable install stays out.
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
