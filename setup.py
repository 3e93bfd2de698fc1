"""The compiled parts; everything else about the package is in pyproject.toml.

They are optional: where no C compiler is at hand the build goes on without them, and the package
computes the same with numpy and torch (docs/decisions/0014-compiled-steps.md).
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("sknn_resid/_native/src")
HEADERS = [str(path) for pattern in ("*.h", "*.inc") for path in sorted(SOURCES.glob(pattern))]
# Sums may be vectorised where the source says so (omp simd), nowhere else: results do not depend
# on the compiler's liberties. A product and a sum are never contracted behind the source's back.
FLAGS = (
    ["/O2"]
    if sys.platform == "win32"
    else ["-O3", "-std=c11", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-g0"]
)


def compiled(name: str) -> Extension:
    """A module of C for every Python from 3.11 on."""
    return Extension(
        f"sknn_resid._native._{name}",
        sources=[(SOURCES / f"{name}.c").as_posix()],
        depends=HEADERS,
        define_macros=[("Py_LIMITED_API", "0x030B0000")],
        extra_compile_args=FLAGS,
        py_limited_api=True,
        optional=True,
    )


setup(
    ext_modules=[compiled(path.stem) for path in sorted(SOURCES.glob("*.c"))],
    options={"bdist_wheel": {"py_limited_api": "cp311"}, "build_ext": {"parallel": True}},
)
