"""Are durations and sizes read and written as people write them?"""

from __future__ import annotations

import pytest

from tinyllm_cli.errors import ConfigError
from tinyllm_cli.quantities import (
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    parse_ttl,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("30s", 30),
        ("10m", 600),
        ("12h", 43_200),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("1.5h", 5400),
        ("0.5", 0.5),
        (" 5 m ", 300),
        ("5M", 300),
        ("0", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    parsed = parse_duration(text)
    assert parsed == seconds
    assert type(parsed) is type(seconds)


NO_DURATION = [
    "",
    " ",
    "-5",
    "+5",
    "5x",
    "m",
    "5 5",
    "1e9",
    "inf",
    "nan",
    ".5",
    "5.",
    "1,5",
    "5min",
]
NO_DURATION += ["\u0665", "5\u0000", "9" * 400, "9" * 5000, "4000w00w", "99999999999d"]


@pytest.mark.parametrize("text", NO_DURATION)
def test_no_durations(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_duration(text)
    assert len(str(raised.value)) < 150
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("text", "ttl"),
    [("0", None), ("never", None), (" Never ", None), ("90", 90), ("7d", 604_800), ("0.5s", 0.5)],
)
def test_ttls(text: str, ttl: float | None) -> None:
    assert parse_ttl(text) == ttl


@pytest.mark.parametrize("text", [*NO_DURATION, "0.0", "0s", "00", "none", "forever"])
def test_no_ttls(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_ttl(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("512b", 512),
        ("1k", 1024),
        ("1kB", 1000),
        ("64MiB", 67_108_864),
        ("1.5GB", 1_500_000_000),
        ("2g", 2_147_483_648),
        (" 1 GiB ", 1_073_741_824),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0.5", "-1", "1TB", "1e6", "nan", "inf", "9" * 400, "9999999999999G", "M"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_size(text)
    assert len(str(raised.value)) < 150


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.99, "10 s"),
        (10, "10 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (86_399, "23 h"),
        (86_400, "1 day"),
        (172_800, "2 days"),
        (31_536_000, "365 days"),
    ],
)
def test_readable_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1434, "1.4 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (256 * 2**20, "256.0 MiB"),
        (1024**3 - 1, "1.0 GiB"),
        (5 * 2**40, "5120.0 GiB"),
    ],
)
def test_readable_sizes(size: float, text: str) -> None:
    assert format_size(size) == text
