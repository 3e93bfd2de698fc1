"""Devices by name: what is there, and what "auto" means.

"auto" never measures: it is an accelerator where one is present and the work is large enough for it
to pay, by a fixed rule, else the CPU. torch is imported only when a device is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Multiplications per training step from which an accelerator is worth its launches and transfers.
AUTO_MIN_WORK = 5e7


def resolve_device(device: str, work_per_step: float = float("inf")) -> torch.device:
    """The torch device that a ``device`` parameter names.

    Parameters
    ----------
    device : str
        "cpu", "auto", or a torch device such as "cuda", "cuda:1", "mps".
    work_per_step : float
        Multiplications per step; "auto" takes the CPU below a fixed number of them.

    Raises
    ------
    ValueError
        If the device is not a torch device name, or is not there.
    """
    import torch

    if device == "auto":
        if work_per_step < AUTO_MIN_WORK:
            return torch.device("cpu")
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device: must be 'cpu', 'auto' or a torch device such as 'cuda:0', got {device!r}."
        ) from error
    if resolved.type == "cuda":
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= n_devices:
            raise ValueError(_absent(device, f"{n_devices} CUDA devices are available"))
    elif resolved.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(_absent(device, "no MPS device is available"))
    elif resolved.type != "cpu":
        raise ValueError(
            f"device: {device!r} is not supported. Use 'cpu', 'auto', 'cuda' or 'mps'."
        )
    return resolved


def _absent(device: str, seen: str) -> str:
    return (
        f"device: {device!r} was asked for, but {seen} on this machine. "
        "Use device='cpu' or device='auto'."
    )
