from __future__ import annotations

import contextlib
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from streams_queue.errors import ConfigurationError
from streams_queue.settings import Address, Settings, redact

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", Address("single", hosts=(("h", 6379),))),
        ("redis://h:7000/3", Address("single", hosts=(("h", 7000),), db=3)),
        ("redis://h?db=3", Address("single", hosts=(("h", 6379),), db=3)),
        ("redis://[::1]:7000", Address("single", hosts=(("::1", 7000),))),
        ("redis://u%40:p%2F%3A@h", Address("single", hosts=(("h", 6379),), username="u@", password="p/:")),
        ("redis://:p@h", Address("single", hosts=(("h", 6379),), password="p")),
        ("rediss://h", Address("single", tls=True, hosts=(("h", 6379),))),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_cert_reqs=none",
            Address(
                "single",
                tls=True,
                hosts=(("h", 6379),),
                options=(("ssl_ca_certs", "/ca.pem"), ("ssl_cert_reqs", "none")),
            ),
        ),
        ("unix:///run/r.sock", Address("unix", path="/run/r.sock")),
        ("unix://u:p@/run/r.sock?db=2", Address("unix", path="/run/r.sock", db=2, username="u", password="p")),
        (
            "redis+sentinel://u:p@a:1,b/main/2",
            Address("sentinel", hosts=(("a", 1), ("b", 26379)), service="main", db=2, username="u", password="p"),
        ),
        ("rediss+sentinel://a/main", Address("sentinel", tls=True, hosts=(("a", 26379),), service="main")),
        ("redis+cluster://a:1,b", Address("cluster", hosts=(("a", 1), ("b", 6379)))),
        ("rediss+cluster://a", Address("cluster", tls=True, hosts=(("a", 6379),))),
        ("embedded://", Address("embedded")),
        ("embedded://data", Address("embedded", path="data")),
        ("embedded:///var/data", Address("embedded", path="/var/data")),
    ],
)
def test_urls(url, address):
    assert Settings(url).address == address


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("", "use one of"),
        ("h:6379", "use one of"),
        ("http://h", "use one of"),
        ("redis://", "host:port"),
        ("redis://h:x", "port is a number"),
        ("redis://h:0", "port is a number"),
        ("redis://h:65536", "port is a number"),
        ("redis://h/x", "database is a number"),
        ("redis://h/-1", "database is a number"),
        ("redis://a,b", "several hosts"),
        ("redis://h?ssl_ca_certs=/ca.pem", "unknown option"),
        ("redis://h?timeout=3", "unknown option"),
        ("rediss://h?ssl_cert_reqs=maybe", "required or none"),
        ("unix://run/r.sock", "absolute path"),
        ("unix://", "absolute path"),
        ("redis+sentinel://h", "name the service"),
        ("redis+cluster://h/1", "database 0 only"),
    ],
)
def test_bad_urls_name_the_remedy(url, remedy):
    with pytest.raises(ConfigurationError, match=rf"^url: .*{remedy}"):
        Settings.resolve(url, {})


def test_where_the_url_comes_from():
    everything = {
        "STREAMS_QUEUE_URL": "redis://one",
        "REDIS_URL": "redis://two",
        "REDIS_HOST": "three",
        "REDIS_PORT": "7000",
        "REDIS_PASSWORD": "p@:/?#",
        "REDIS_DB": "4",
    }
    assert Settings.resolve("redis://zero", everything).url == "redis://zero"
    assert Settings.resolve(None, everything).url == "redis://one"
    assert Settings.resolve(None, everything | {"STREAMS_QUEUE_URL": " "}).url == "redis://two"
    parts = {name: value for name, value in everything.items() if not name.endswith("_URL")}
    assert Settings.resolve(None, parts).address == Address("single", hosts=(("three", 7000),), db=4, password="p@:/?#")
    assert Settings.resolve(None, {"REDIS_HOST": "::1"}).address.hosts == (("::1", 6379),)
    assert Settings.resolve(None, {}) == Settings("redis://redis:6379/0", timeout=5.0)


def test_the_timeout_counts_in_every_case():
    assert Settings.resolve("redis://h", {"REDIS_TIMEOUT": "0.5"}).timeout == 0.5
    assert Settings.resolve(None, {"REDIS_TIMEOUT": "2"}).timeout == 2.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STREAMS_QUEUE_URL", "h"),
        ("REDIS_URL", "redis://h:x"),
        ("REDIS_HOST", "h:6379"),
        ("REDIS_HOST", "a b"),
        ("REDIS_HOST", "redis://h"),
        ("REDIS_PORT", "six"),
        ("REDIS_PORT", "0"),
        ("REDIS_DB", "-1"),
        ("REDIS_TIMEOUT", "soon"),
        ("REDIS_TIMEOUT", "0"),
        ("REDIS_TIMEOUT", "nan"),
        ("REDIS_TIMEOUT", "inf"),
    ],
)
def test_a_bad_variable_is_named(name, value):
    with pytest.raises(ConfigurationError, match=f"^{name}: cannot use "):
        Settings.resolve(None, {name: value})


def test_display_and_reprs_hide_the_password():
    settings = Settings(f"redis+sentinel://user:{SECRET}@a:1,b:2/main")
    assert settings.display == "redis+sentinel://user:***@a:1,b:2/main"
    assert repr(settings) == f"Settings(url={settings.display!r}, timeout=5.0)"
    assert SECRET not in str(settings)
    assert SECRET not in pretty_repr(settings)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert Settings("embedded:///a@b:c").display == "embedded:///a@b:c"
    assert Settings("redis://h:6379/0?db=1").display == "redis://h:6379/0?db=1"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@h:x",
        f"redis://{SECRET}@h:x",
        f"redis://u:{SECRET}",
        f"redis://:{SECRET}",
        f"redis://:a/{SECRET}@h/x",
        f"redis://:a?{SECRET}@h",
        f"redis://:a#{SECRET}@h:y",
        f"redis://:a@{SECRET}@h:y",
        f"redis://h:x?password={SECRET}",
        f"redis://h?password={SECRET}",
        f"redis://[::1]:{SECRET}",
        f"u:{SECRET}@h",
        f"http://u:{SECRET}@h",
        f"redis+sentinel://:{SECRET}@a,b",
        f"redis+cluster://:{SECRET}@a,b/1",
        f"unix://:{SECRET}@run/r.sock",
    ],
)
def test_a_bad_url_does_not_give_the_password_away(url):
    with pytest.raises(ConfigurationError) as caught:
        Settings.resolve(None, {"REDIS_URL": url})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=20))
def test_no_password_in_front_of_a_host_is_ever_shown(password):
    marked = f"<{SECRET}{password}{SECRET}>"
    assert SECRET not in redact(f"redis://user:{marked}@host:6379/0")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_any_password_survives_the_way_through_the_variables(password):
    assert Settings.resolve(None, {"REDIS_PASSWORD": password}).address.password == password


@given(st.sampled_from(["", "redis", "unix", "redis+sentinel", "rediss+cluster"]), st.text(max_size=40))
def test_any_text_is_a_url_or_a_configuration_error(scheme, rest):
    with contextlib.suppress(ConfigurationError):
        Settings.resolve(f"{scheme}://{rest}", {})
