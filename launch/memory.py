"""Peak memory of this process since it was last reset."""

import resource
from pathlib import Path

import torch

_MEBIBYTE = 1024 * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Start counting anew; a worker runs many cells one after another."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM
    except OSError:
        return  # not permitted, or not Linux: the peak then is that of the process's whole life


def peak_memory_mb(device: torch.device) -> float:
    """Peak in MiB: of tensors on a GPU, else of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEBIBYTE
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024
