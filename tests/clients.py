"""The core suite on every client that is promised, one line for each: `make clients`; ARGS="5 7" chooses.

Each has a virtual environment and a log of its own in `.venv/clients`. What follows them goes to pytest.
"""

import itertools
import subprocess
import sys
import time
from pathlib import Path

CLIENTS = ("5.0.2", "5", "6", "7", "8")
"""The floor, and the newest of each major version."""

ROOT = Path(__file__).parent.parent
CORE = (
    "transitions",
    "compat",
    *(f"test_{room}.py" for room in ("connection", "leases", "outages", "queue", "results", "worker")),
)


def main() -> int:
    arguments = sys.argv[1:]
    asked = list(itertools.takewhile(lambda argument: argument[0].isdigit(), arguments))
    passed = [_passes(client, arguments[len(asked) :]) for client in asked or CLIENTS]
    return 0 if all(passed) else 1


def _passes(client: str, options: list[str]) -> bool:
    place = ROOT / ".venv" / "clients" / client
    place.mkdir(parents=True, exist_ok=True)
    log, began = place / "log", time.monotonic()
    with log.open("wb") as out:

        def run(*command: object) -> bool:
            return subprocess.run([*map(str, command)], cwd=ROOT, stdout=out, stderr=out, check=False).returncode == 0

        python = place / "bin" / "python"
        version = client if client.count(".") == 2 else f"{client}.*"
        passed = (
            run(sys.executable, "-m", "venv", place)
            and run(python, "-m", "pip", "install", "--upgrade", "pip>=25.1")
            and run(python, "-m", "pip", "install", "--upgrade", "-e.[all]", "--group=test", f"redis=={version}")
            and run(python, "-m", "pytest", "-q", *(ROOT / "tests" / part for part in CORE), *options)
        )
    said = log.read_text(errors="replace").splitlines()[-1:]
    print(
        f"redis-py {client}: {'passed' if passed else 'FAILED'} in {time.monotonic() - began:.0f} s;", *said, flush=True
    )
    if not passed:
        print(f"    see {log.relative_to(ROOT)}", flush=True)
    return passed


if __name__ == "__main__":
    sys.exit(main())
