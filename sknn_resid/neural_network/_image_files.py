"""Images in files: a folder with a subfolder for each class, and reading with Pillow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload

import numpy as np

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
CACHED_BYTES = 1 << 29  # decoded images up to this size are kept in memory for the length of a call
READERS = 8  # Pillow decodes outside the interpreter's lock

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageFolder(Sequence[str]):
    """The images of a folder that has one subfolder for each class.

    A sequence of paths, so it can be split, indexed and handed to `ResNetClassifier` like a list;
    no image is read before it is needed.

    Parameters
    ----------
    root : str or path-like
        The folder. Images lie in ``root/class name/``, at any depth below.
    extensions : tuple of str, default=None
        Endings of file names that count as images, in lower case; None for the usual ones.

    Attributes
    ----------
    paths : list of str
        All files, class by class, sorted within a class.
    targets : ndarray of shape (n_images,)
        Name of each image's class.
    classes : list of str
        Names of the subfolders, sorted.

    Raises
    ------
    ValueError
        If the folder is not there, has no subfolders, or one of them holds no image.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     (root / name).mkdir()
    ...     _ = (root / name / "1.png").write_bytes(b"")
    >>> from sknn_resid import ImageFolder
    >>> folder = ImageFolder(root)
    >>> len(folder), folder.targets.tolist()
    (2, ['cat', 'dog'])
    """

    def __init__(
        self, root: str | os.PathLike[str], *, extensions: tuple[str, ...] | None = None
    ) -> None:
        self.root = os.fspath(root)
        self.extensions = EXTENSIONS if extensions is None else tuple(extensions)
        if not os.path.isdir(self.root):
            raise ValueError(f"root: {self.root!r} is not a folder.")
        self.classes = sorted(
            entry.name
            for entry in os.scandir(self.root)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        if not self.classes:
            raise ValueError(
                f"root: {self.root!r} has no subfolders. Each class needs one, with its images in "
                "it."
            )
        self.paths: list[str] = []
        targets: list[str] = []
        for name in self.classes:
            found = self._files(os.path.join(self.root, name))
            if not found:
                raise ValueError(
                    f"root: the class {name!r} of {self.root!r} has no file that ends in one of "
                    f"{', '.join(self.extensions)}. Remove the subfolder, or set extensions."
                )
            self.paths += found
            targets += [name] * len(found)
        self.targets = np.array(targets)

    def _files(self, folder: str) -> list[str]:
        return sorted(
            os.path.join(place, name)
            for place, _, names in os.walk(folder)
            for name in names
            if name.lower().endswith(self.extensions) and not name.startswith(".")
        )

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.paths[index]

    def __repr__(self) -> str:
        return f"ImageFolder({self.root!r}): {len(self)} images of {len(self.classes)} classes"


def as_paths(X: Any) -> list[str] | None:
    """X as a list of file names, None if it is something else."""
    if isinstance(X, ImageFolder):
        return X.paths
    if isinstance(X, (str, bytes, os.PathLike)):
        raise ValueError(
            f"X: got one path, {X!r}. Give a sequence of paths, or ImageFolder(path) for a folder "
            "with a subfolder for each class."
        )
    if getattr(X, "ndim", 1) != 1 or not isinstance(X, (Sequence, np.ndarray)):
        if not hasattr(X, "to_numpy") or getattr(X, "ndim", 2) != 1:
            return None
        X = X.to_numpy()  # a pandas or polars column
    if len(X) == 0 or not isinstance(X[0], (str, os.PathLike)):
        return None
    for i, path in enumerate(X):
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"X: item {i} of a sequence of paths is none: {path!r}.")
    return [os.fspath(path) for path in X]


def first_shape(path: str) -> tuple[int, int, int]:
    """Height, width and 3 channels of the file that sets the shape of all of them."""
    with opened(path) as image:
        width, height = image.size
    return height, width, 3


def read_images(paths: Sequence[str], shape: tuple[int, int, int], *, resize: bool) -> np.ndarray:
    """Files as bytes (n, H, W, C).

    Parameters
    ----------
    paths : sequence of str
    shape : (int, int, int)
    resize : bool
        Whether an image of another size is cut to the proportions of ``shape`` about its centre and
        then resized (bilinear over the area of each new pixel), or refused.

    Raises
    ------
    ImportError
        Without Pillow.
    ValueError
        Naming a file that is no image, or is of another size.
    """
    found = np.empty((len(paths), *shape), dtype=np.uint8)

    def read(i: int) -> None:
        found[i] = _read(paths[i], shape, resize)

    if len(paths) < READERS:
        for i in range(len(paths)):
            read(i)
        return found
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        list(pool.map(read, range(len(paths))))
    return found


def _read(path: str, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    from PIL import Image, ImageOps

    height, width, channels = shape
    with opened(path) as image:
        try:
            image = image.convert(_MODES[channels])
        except OSError as error:
            raise ValueError(f"X: {path!r} cannot be read as an image ({error}).") from error
        if image.size != (width, height):
            if not resize:
                raise ValueError(
                    f"image_shape: without one all files must have one size, but {path!r} is "
                    f"{image.size[1]} x {image.size[0]} pixels (height x width), not {height} x "
                    f"{width}. Set image_shape=(height, width) to resize them."
                )
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def opened(path: str) -> Any:
    """A file as a PIL image, not decoded yet."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Reading image files needs Pillow: pip install 'sknn-resid[images]', or pass the "
            "images as an array."
        ) from error
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise ValueError(f"X: there is no file {path!r}.") from error
    except OSError as error:
        raise ValueError(f"X: {path!r} cannot be read as an image ({error}).") from error
