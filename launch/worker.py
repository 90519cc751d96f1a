"""What a Ray Train worker does: run cell after cell, each in a process group of its own."""

import os
import traceback
from datetime import timedelta
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device
from torch._C._distributed_c10d import TCPStore

from launch.board import Failure
from launch.errors import first_line
from launch.network import interface_towards
from launch.planning import PlannedCell
from launch.train import train_cell


def work(settings: dict[str, Any]) -> None:
    """Run the cells that the board gives, until it has no more.

    Args:
        settings: `board`, the actor; `cells`, a list of one reference to {number: PlannedCell}; `backend`, `timeout_s`;
            `environment`, variables that count where the worker's machine does not set its own.
    """
    for name, value in settings["environment"].items():
        os.environ.setdefault(name, value)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    board = settings["board"]
    address = ray.util.get_node_ip_address()
    ray.get(board.join.remote(rank, f"process {os.getpid()} on {address}"))
    cells: dict[int, PlannedCell] = ray.get(settings["cells"][0])
    device = _device(settings["backend"])
    timeout = timedelta(seconds=settings["timeout_s"])
    while True:
        offer, store = _offer(board, address, world_size, timeout) if rank == 0 else ({}, None)
        offer = broadcast_from_rank_zero(offer)
        if offer["cell"] is None:
            return
        _run(cells[offer["cell"]], offer, store, settings, rank, world_size, device)
        del store  # frees its port


def _offer(board: Any, address: str, world_size: int, timeout: timedelta) -> tuple[dict[str, Any], TCPStore | None]:
    """On rank 0: the next cell, and where its workers meet."""
    number = ray.get(board.next_cell.remote())
    if number is None:
        return {"cell": None}, None
    # Port 0 lets the system choose a free one; nobody can take it in between.
    store = TCPStore(address, 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False)
    return {"cell": number, "host": address, "port": store.port}, store


def _run(
    planned: PlannedCell,
    offer: dict[str, Any],
    store: TCPStore | None,
    settings: dict[str, Any],
    rank: int,
    world_size: int,
    device: torch.device,
) -> None:
    board, number = settings["board"], offer["cell"]
    timeout = timedelta(seconds=settings["timeout_s"])
    try:
        ray.get(board.begin.remote(number, rank))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_towards(offer["host"]))
        if store is None:
            store = TCPStore(offer["host"], offer["port"], world_size, is_master=False, timeout=timeout)
        dist.init_process_group(settings["backend"], store=store, rank=rank, world_size=world_size, timeout=timeout)
        try:
            result = train_cell(planned, device, lambda step, metrics: board.record.remote(number, step, metrics))
        finally:
            # Frees the other workers at once: their collectives fail instead of waiting for us.
            dist.destroy_process_group()
        if rank == 0:
            ray.get(board.finish.remote(number, result))
    except Exception as error:  # noqa: BLE001  # one cell's failure is reported, and the next one runs
        failure = Failure(rank, first_line(error), traceback.format_exc(), by_peer=_says_peer_left(error))
        ray.get(board.fail.remote(number, failure))


def _says_peer_left(error: Exception) -> bool:
    """Whether an error only tells that another worker closed its connections or stopped answering."""
    words = ("connection closed by peer", "connection reset", "broken pipe", "timed out", "connection refused")
    return isinstance(error, (dist.DistError, RuntimeError)) and any(word in str(error).lower() for word in words)


def _device(backend: str) -> torch.device:
    if backend != "nccl":
        return torch.device("cpu")
    device: torch.device = get_device()
    torch.cuda.set_device(device)
    return device
