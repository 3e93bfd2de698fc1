"""What to paste into a bug report: versions, machine, threads, accelerators."""

import importlib.metadata
import os
import platform
import sys

from sknn_resid._native import PARTS, compiled
from sknn_resid._version import __version__

# Distribution names of what the package uses, in the order in which they are printed.
_DISTRIBUTIONS = (
    "scikit-learn",
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "joblib",
    "threadpoolctl",
    "matplotlib",
)


def show_versions() -> None:
    """Print versions of the package, its dependencies and the machine.

    The output belongs into every bug report. torch is imported, since only torch can say which
    accelerators it sees.

    Examples
    --------
    >>> import sknn_resid
    >>> sknn_resid.show_versions()  # doctest: +ELLIPSIS
    System
    ...
    """
    packages = {name: _version_of(name) for name in _DISTRIBUTIONS}
    sections = {
        "System": _system(),
        "Python packages": {"sknn-resid": __version__} | packages,
        "Compiled parts": _compiled_parts(),
        "torch": _torch(),
    }
    for title, facts in sections.items():
        print(title)
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"  {name:>{width}}: {value}")
        print()
    print("Thread pools")
    for line in _thread_pools():
        print(f"  {line}")


def _system() -> dict[str, str]:
    return {
        "python": sys.version.replace("\n", " "),
        "executable": sys.executable,
        "platform": platform.platform(),
        "processors": str(os.cpu_count()),
    }


def _version_of(distribution: str) -> str:
    """Read the version from the metadata, which imports nothing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _compiled_parts() -> dict[str, str]:
    steps = compiled("steps")
    found = {
        part: "not built, or left out" if compiled(part) is None else "built" for part in PARTS
    }
    return found | {"instructions": "none" if steps is None else steps.level()}


def _torch() -> dict[str, str]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "threads": str(torch.get_num_threads()),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "CUDA": torch.cuda.get_device_name() if cuda else "not available",
        "MPS": "available" if torch.backends.mps.is_available() else "not available",
    }


def _thread_pools() -> list[str]:
    """Name every OpenMP and BLAS library in the process: two of a kind are a common trouble."""
    import threadpoolctl

    return [
        f"{pool['user_api']} {pool['internal_api']} {pool.get('version') or ''} "
        f"threads={pool['num_threads']} {pool['filepath']}"
        for pool in threadpoolctl.threadpool_info()
    ]
