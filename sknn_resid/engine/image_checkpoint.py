"""Files from which an interrupted training goes on as if it had never stopped.

One file per training, named by a digest of all that decides its course: structure, settings, seed,
device, and the data themselves. So a folder can serve many fits (a search, say), a fit finds its
own file, and a fit with any other number begins anew. numpy's ``.npz`` without pickled objects:
reading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np

from sknn_resid.engine.image_data import ImageSet

SAMPLED_ROWS = 256  # whose pixels go into the digest, spread evenly over the set


class Checkpoint:
    """The file of one training.

    Parameters
    ----------
    folder : str
        Made if it is not there.
    key : str
        Digest of the training.
    """

    def __init__(self, folder: str, key: str) -> None:
        self._folder = folder
        self.path = os.path.join(folder, f"fit-{key}.npz")

    def save(self, numbers: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Write beside the file, then take its place: an interrupt leaves the older one."""
        os.makedirs(self._folder, exist_ok=True)
        contents: dict[str, Any] = {"numbers": np.array(json.dumps(numbers)), **arrays}
        partial = f"{self.path}.partial"
        try:
            with open(partial, "wb") as file:
                np.savez(file, **contents)
            os.replace(partial, self.path)
        finally:
            if os.path.exists(partial):
                os.remove(partial)

    def load(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """What was saved last, None if nothing was.

        Raises
        ------
        ValueError
            If there is a file of that name which `save` did not write.
        """
        if not os.path.exists(self.path):
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return json.loads(str(arrays.pop("numbers"))), arrays
        except Exception as error:
            raise ValueError(
                f"checkpoint_dir: {self.path!r} is damaged or no checkpoint ({error}). Delete it "
                "to begin anew."
            ) from error

    def remove(self) -> None:
        """Delete the file: the training is complete."""
        if os.path.exists(self.path):
            os.remove(self.path)


def digest(*parts: Any) -> str:
    """16 hexadecimal digits of arrays, image sets, and the ``repr`` of everything else."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, ImageSet):
            _add_images(total, part)
        elif isinstance(part, np.ndarray):
            total.update(repr((part.shape, part.dtype.str)).encode())
            total.update(np.ascontiguousarray(part).tobytes())
        elif isinstance(part, dict):
            for name in sorted(part):
                total.update(f"{name}:{digest(part[name])}".encode())
        else:
            total.update(repr(part).encode())
        total.update(b";")
    return total.hexdigest()[:16]


def _add_images(total: Any, data: ImageSet) -> None:
    rows = data.all_rows()
    sampled = rows[:: max(1, len(rows) // SAMPLED_ROWS)]
    total.update(repr((data.images.n_rows, data.images.shape)).encode())
    total.update(data.images.gather(sampled).cpu().numpy().tobytes())
    for array in (rows, data.codes, data.weight):
        total.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
