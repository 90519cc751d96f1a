"""`gradrank doctor`: what a study needs of this machine, each with ok or the mend."""

import platform
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from launch.errors import UserError
from launch.network import address_towards, interface_towards
from models.data.fetching import SOURCES
from models.data.files import ROOT_VARIABLE, named_root

_GIBIBYTE = 1024**3
LEAST_MEMORY = 2 * _GIBIBYTE
"""Free memory below which two workers and Ray hardly start."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` is empty where all is well."""

    what: str
    found: str
    mend: str = ""


def examine(uri: str | None) -> Iterator[Finding]:
    """Look at Python, packages, backends, GPUs, network, store and memory, one after another."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _torch,
        *(lambda name=name: _package(name) for name in ("ray", "mlflow", "numpy", "scikit-learn")),
        _backend,
        _gpus,
        _interface,
        lambda: _store(uri),
        _data,
        _memory,
    ]
    for check in checks:
        yield check()


def _python() -> Finding:
    mend = "" if sys.version_info >= (3, 11) else "use Python 3.11 or newer"
    return Finding("Python", platform.python_version(), mend)


def _torch() -> Finding:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    mend = "" if (major, minor) >= (2, 13) else "pip install 'torch>=2.13'"
    return Finding("torch", torch.__version__, mend)


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "not installed", f"pip install {name}")


def _backend() -> Finding:
    found = [name for name, there in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available())) if there]
    return Finding("backend", ", ".join(found) or "none", "" if found else "install a torch build with gloo")


def _gpus() -> Finding:
    if not torch.cuda.is_available():
        return Finding("GPUs", "none; workers run on CPUs with gloo")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    mend = "" if dist.is_nccl_available() else "install a torch build with nccl"
    return Finding("GPUs", ", ".join(names), mend)


def _interface() -> Finding:
    host = socket.gethostname()
    try:
        resolved = socket.gethostbyname(host)
    except OSError:
        resolved = "nothing"
    try:
        # Any address outside this machine tells which interface leads out; nothing is sent.
        address = address_towards("192.0.2.1")
    except OSError:
        return Finding("network", "loopback only; enough for workers on this machine")
    try:
        name = interface_towards("192.0.2.1")
    except RuntimeError as error:
        return Finding("network", str(error), "name the interface: export GLOO_SOCKET_IFNAME=…")
    note = f"; {host} resolves to {resolved}, so workers name the interface themselves" if resolved != address else ""
    return Finding("network", f"{name} ({address}){note}")


def _store(uri: str | None) -> Finding:
    from launch.tracking import Store, tracking_uri  # importing MLflow takes seconds

    resolved = tracking_uri(uri)
    if resolved.startswith("sqlite:///") and not Path(resolved.removeprefix("sqlite:///")).exists():
        return Finding("store", f"{resolved}, which the first study makes")
    try:
        return Finding("store", Store.open(uri).uri)
    except UserError as error:
        return Finding("store", resolved, str(error))


def _data() -> Finding:
    root = named_root(None)
    if root is None:
        return Finding("data", f"{ROOT_VARIABLE} is not set; studies on files name data.root")
    if not root.is_dir():
        return Finding(
            "data", f"{root} is no folder", f"export {ROOT_VARIABLE}=… of the folder that holds the data sets"
        )
    there = [name for name, source in SOURCES.items() if source.folder(root).is_dir()]
    return Finding("data", f"{root}: {', '.join(there) or 'no data set yet, gradrank data fetch NAME gets one'}")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIBIBYTE:.1f} of {memory.total / _GIBIBYTE:.1f} GiB free"
    mend = "" if memory.available >= LEAST_MEMORY else "free 2 GiB or more before a run"
    return Finding("memory", found, mend)
