"""What Ray reads from the environment as it is imported, and so must be set before."""

import os

from launch.config import ClusterSettings


def ray_address(settings: ClusterSettings) -> str:
    """The cluster to join: the one named, else RAY_ADDRESS; `local` starts one here."""
    return settings.address or os.environ.get("RAY_ADDRESS") or "local"


def prepare(settings: ClusterSettings) -> None:
    """Set what the user has not set. Call it before the first import of Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray_address(settings) == "local":
        # A cluster of our own takes a token, so that nobody else on the network can run code in it;
        # one that runs already has a mode of its own, which the user's environment names.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
