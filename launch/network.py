"""Which network interface workers reach each other by."""

import socket

import psutil


def address_towards(host: str, port: int = 9) -> str:
    """The address of this machine that packets to a host leave from; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


def interface_towards(host: str) -> str:
    """The interface that reaches a host, for GLOO_SOCKET_IFNAME.

    gloo by itself takes the address of the machine's own name, which often is the loopback.

    Raises:
        RuntimeError: no interface has the address that leads there.
    """
    address = address_towards(host)
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == address for entry in addresses):
            return name
    raise RuntimeError(f"no network interface has the address {address}, which leads to {host}")
