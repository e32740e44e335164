"""Where is Redis by its URL, and does a bad URL say what is wrong without its password?"""

from __future__ import annotations

import pytest

from tinyllm_cli.backends.redis_login import login
from tinyllm_cli.backends.redis_url import Endpoint, Tls, masked, parse_redis_url
from tinyllm_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "endpoints", "db"),
    [
        ("redis://cache", [("cache", 6379)], 0),
        ("redis://cache:7000/3", [("cache", 7000)], 3),
        ("redis://cache/", [("cache", 6379)], 0),
        ("redis://cache?db=4", [("cache", 6379)], 4),
        ("redis://[::1]:7000/1", [("::1", 7000)], 1),
        ("unix:///run/redis.sock?db=2", [("/run/redis.sock", 0)], 2),
        ("redis+sentinel://a,b:1/main/5", [("a", 26379), ("b", 1)], 5),
        ("redis+cluster://a,b:7001", [("a", 6379), ("b", 7001)], 0),
    ],
)
def test_a_url_names_servers_and_a_database(
    url: str, endpoints: list[tuple[str, int]], db: int
) -> None:
    address = parse_redis_url(url)
    assert [tuple(endpoint) for endpoint in address.endpoints] == endpoints
    assert address.db == db


def test_user_and_password_are_decoded_and_never_shown() -> None:
    address = parse_redis_url("redis://alice:p%40ss%2Fword@cache:1/2")
    assert (address.username, address.password) == ("alice", "p@ss/word")
    assert str(address) == "cache:1"
    assert "p@ss" not in f"{address!r} {address}"
    assert parse_redis_url("redis://:secret@cache").username is None
    assert parse_redis_url("unix://alice:secret@/run/r.sock").password == "secret"


def test_tls_takes_files_from_the_url_before_those_of_the_settings() -> None:
    address = parse_redis_url("rediss://cache?ssl_ca_certs=/a&ssl_certfile=/b")
    assert address.with_tls_files("/x", "/y", "/z").tls == Tls("/a", "/b", "/z")
    assert parse_redis_url("redis://cache").with_tls_files("/x", None, None).tls is None


def test_the_login_of_a_sentinel_is_its_own() -> None:
    address = parse_redis_url("redis+sentinel://u:p@a/main/2?sentinel_password=q")
    assert login(address, Endpoint("a", 26379)) == [("AUTH", "q")]
    assert login(address, Endpoint("master", 6379)) == [("AUTH", "u", "p"), ("SELECT", 2)]
    assert login(parse_redis_url("redis://a"), Endpoint("a", 6379)) == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://h:notaport", "port"),
        ("redis://h:0", "port"),
        ("redis://h:70000", "port"),
        ("redis:/x", "not the address"),
        ("http://h", "not the address"),
        ("localhost:6379", "not the address"),
        ("redis://h/notadb", "database"),
        ("redis://h/-1", "database"),
        ("redis://h/%zz", "%"),
        ("redis://h x", "space"),
        ("redis://h\n", "space or a control"),
        ("", "empty"),
        ("redis://", "no host"),
        ("redis://[::1", "host"),
        ("redis://a,b", "several hosts"),
        ("redis://h?nonsense=1", "option"),
        ("rediss://h?ssl_cert_reqs=none", "verification"),
        ("rediss://h?ssl_check_hostname=false", "verification"),
        ("redis://h?ssl_ca_certs=/x", "not TLS"),
        ("unix://run/redis.sock", "absolute path"),
        ("redis+sentinel://a", "service"),
        ("redis+cluster://a/1", "database"),
    ],
)
def test_a_bad_url_says_why(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_redis_url(url)
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    "url",
    [
        "redis://alice:hunter2@h:notaport",
        "redis://alice:hun#hunter2@h",
        "redis://alice:hunter2@h:1/%zz",
        "redis://alice:1?hunter2@h",
        "redis://alice:hunter2/x@h:y",
        "redis://:hunter2@h:y",
        "alice:hunter2@h",
        "hunter2@h",
        "http://alice:hunter2@h",
        "redis+sentinel://h:x/main?sentinel_password=hunter2",
        "unix://alice:hunter2@relative.sock",
    ],
)
def test_no_part_of_a_password_is_in_the_message_or_the_traceback(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_redis_url(url)
    assert "hunter2" not in f"{caught.value} {caught.value.hint} {masked(url)}"
    assert "***" in masked(url)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
