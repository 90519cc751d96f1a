"""Bandwidths and times as people write them."""

import pytest

from compress.cost import Network, parse_bandwidth, parse_seconds


@pytest.mark.parametrize(
    ("given", "bits"),
    [
        ("25gbit", 25e9),
        ("25 Gbit/s", 25e9),
        ("100mbit", 1e8),
        ("100Mbps", 1e8),
        ("1.5GB/s", 12e9),
        ("1.5gb/s", 1.5e9),
        ("2GiB/s", 2 * 8 * 2**30),
        ("8", 8),
        (1e9, 1e9),
        ("1e9", 1e9),
        ("56kbit", 56e3),
        ("0.4tbit", 4e11),
    ],
)
def test_bandwidths_are_read(given, bits):
    assert parse_bandwidth(given) == pytest.approx(bits, rel=1e-15)


@pytest.mark.parametrize(
    "given", ["", "fast", "25gbits per second", "-1gbit", "0", 0, True, "nan", "1e400", "20us", "g"]
)
def test_what_is_no_bandwidth_is_refused(given):
    with pytest.raises(ValueError, match=r"found .*allowed are bits per second, such as 25gbit"):
        parse_bandwidth(given)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("20us", 2e-5), ("20 µs", 2e-5), ("0.1ms", 1e-4), ("1s", 1), ("5ns", 5e-9), (0, 0), ("3e-6", 3e-6)],
)
def test_times_are_read(given, seconds):
    assert parse_seconds(given) == pytest.approx(seconds, rel=1e-15)


@pytest.mark.parametrize("given", ["", "-1us", "1m", "soon", False, "inf", "25gbit"])
def test_what_is_no_time_is_refused(given):
    with pytest.raises(ValueError, match=r"found .*allowed is a time, such as 20us"):
        parse_seconds(given)


def test_a_network_reads_units_and_refuses_what_it_does_not_know():
    network = Network(bandwidth="1GB/s", latency="1ms")
    assert (network.bandwidth, network.latency) == (8e9, 1e-3)
    with pytest.raises(ValueError, match="lateny"):
        Network(bandwidth="1GB/s", lateny="1ms")
