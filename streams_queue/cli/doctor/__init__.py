"""`streams-queue doctor`: what is wrong with a server and its queues, and what mends it."""

from typing import Annotated

import typer

from streams_queue.cli.doctor.roles import Role
from streams_queue.cli.options import PREFIX, Json, Url
from streams_queue.cli.terminal import fail

EPILOG = """\
\b
Examples:
  streams-queue doctor
  streams-queue doctor --prefix orders --prefix emails
  streams-queue doctor --prefix orders --role worker --json
  streams-queue doctor --acl worker --user orders --prefix orders
  streams-queue doctor --acl worker --user chat --prefix chat --sharded

\b
Without a prefix it looks at the server alone. It changes nothing: what it
writes to try out permissions are keys of its own, gone at the end.
Permissions are those of the user in the URL, who may stand for anybody
without --role.

\b
--acl prints the one command that makes a user with the rights of a role, for
redis-cli. The password is yours to fill in.

\b
Exit codes:
  0  nothing is wrong
  1  there is a danger: messages are lost or wait
  2  wrong arguments or configuration
  3  the server could not be reached
  4  there are warnings, and no danger
"""


def doctor(
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            "--prefix", metavar="P", envvar=PREFIX, help="A queue: what its keys begin with. May be repeated."
        ),
    ] = None,
    url: Url = None,
    as_json: Json = False,
    role: Annotated[Role | None, typer.Option("--role", help="What the URL's user is meant for.")] = None,
    acl: Annotated[
        Role | None, typer.Option("--acl", help="Look at nothing: print the rights that this role needs.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="With --acl: the user's name.")] = None,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="With --acl: the queues have shards; rights to any number of them.")
    ] = False,
) -> None:
    """Say what is wrong with a server and its queues, and what mends it."""
    # What only this command needs takes a while to import.
    from streams_queue.cli.doctor import command  # noqa: PLC0415

    prefixes = list(dict.fromkeys(prefix or ()))
    if (user is not None or sharded) and acl is None:
        fail(f"{'--user' if user is not None else '--sharded'} goes with --acl")
    if acl is not None:
        command.print_rule(acl, user, prefixes, url, sharded=sharded, as_json=as_json)
    else:
        command.run(prefixes, url, role, as_json=as_json)
