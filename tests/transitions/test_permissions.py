"""What a user may not do is found before anything is done."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from streams_queue.connection import Connection
from streams_queue.errors import ConfigurationError
from streams_queue.settings import Settings
from streams_queue.transitions import Transitions
from transitions.tables import LEASE, Queue


@pytest.mark.parametrize("command", ["xautoclaim", "xack", "zremrangebyrank", "publish"])
async def test_a_user_who_lacks_a_command_does_not_join(queue: Queue, server, command):
    try:
        await queue.redis.execute_command("ACL", "DRYRUN", "default", "PING")
    except ResponseError:
        pytest.skip("before 7.0 a script cannot ask what its user may do")
    await queue.redis.execute_command("ACL", "SETUSER", "u", "on", ">secret", "~*", "&*", "+@all", f"-{command}")
    connection = Connection(Settings.resolve(server.url.replace("://", "://u:secret@", 1)))
    await connection.open()
    before = await queue.table()
    with pytest.raises(ConfigurationError, match=f"may not run {command.upper()}") as denied:
        await Transitions(connection, queue.keys).join("w9", LEASE)
    assert "secret" not in str(denied.value)
    assert await queue.table() == before
    await connection.close()
    await queue.redis.execute_command("ACL", "DELUSER", "u")
