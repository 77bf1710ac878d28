"""Wrong passwords, missing permissions, certificates that cannot be trusted (fault 21)."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any

import trustme

import streams_queue
from chaos.lab import Lab
from chaos.proxy import Proxy
from chaos.scenario import fault
from streams_queue import ConfigurationError, Queue, Worker

PASSWORD = "swordfish-77"


async def _refused(url: str, *, works: bool = True) -> str:
    """The text of the ConfigurationError with which a worker (or an opening queue) ends at its start."""
    queue: Queue[Any] = Queue("q", url=url)
    worker = Worker(queue, lease=1.0)

    @worker.handler
    async def handle(message: object) -> None:
        raise AssertionError("nothing was to run")

    try:
        await (worker.run() if works else queue.open())
    except ConfigurationError as error:
        text = str(error)
    else:
        raise AssertionError("it was not refused")
    finally:
        await queue.close()
    assert PASSWORD not in text and PASSWORD not in repr(queue), "the password is in the message"
    return text


@fault("21", "a wrong password; a user that lacks one command")
async def denied(lab: Lab) -> None:
    """A worker fails at its start, by a typed error that names what lacks and not the password; nothing is half run."""
    server = lab.serve("--requirepass", PASSWORD)
    async with lab.lane() as lane, server.client() as admin:
        (id,) = await lane.enqueue()
        port = server.port
        await _refused(f"redis://:wrong-{PASSWORD}@127.0.0.1:{port}", works=False)
        await _refused(f"redis://127.0.0.1:{port}", works=False)
        lab.tally.runs += 2
        before = await admin.dump(lane.queue.keys.message(id))
        # Redis 6.2 cannot be asked beforehand: there the first call that needs the command says so.
        for command in () if lab.server_name == "redis-6.2" else _commands():
            await admin.execute_command(
                "ACL", "SETUSER", "u", "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all", f"-{command}"
            )
            text = await _refused(f"redis://u:{PASSWORD}@127.0.0.1:{port}")
            assert command.upper() in text.upper(), f"{command}: {text}"
            lab.tally.runs += 1
        assert await admin.dump(lane.queue.keys.message(id)) == before, "the message was touched"
        await lane.start()
        await lane.done([id])
        await lane.judge()


def _commands() -> list[str]:
    """Every command of the scripts that workers run: `page` is for people who look."""
    folder = Path(streams_queue.__file__).parent / "lua"
    scripts = "".join(path.read_text() for path in folder.rglob("*.lua") if path.stem != "page")
    return sorted({name.lower() for name in re.findall(r"(?:call|try)\('([A-Z]+)'", scripts)})


@fault("21", "TLS: self-signed, for another host, from an unknown authority")
async def distrusted(lab: Lab) -> None:
    """It fails at the start, by a typed error; with the right certificate the same set-up works."""
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    for name, ca in (("right", authority), ("wrong", other)):
        ca.cert_pem.write_to_path(str(lab.directory / f"{name}.pem"))
    async with lab.lane() as lane, Proxy(lab.server.port, context) as proxy:
        for host, trusted in (("localhost", "wrong"), ("127.0.0.1", "right")):
            url = f"rediss://:{PASSWORD}@{host}:{proxy.port}?ssl_ca_certs={lab.directory}/{trusted}.pem"
            assert "TLS failed" in await _refused(url)
            lab.tally.runs += 1
        await lane.start(url=f"rediss://localhost:{proxy.port}?ssl_ca_certs={lab.directory}/right.pem")
        await lane.done(await lane.enqueue())
        await lane.judge()
