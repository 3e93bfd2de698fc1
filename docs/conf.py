"""Configuration of the documentation (Sphinx)."""

import sknn_resid

project = "sknn_resid"
author = "the sknn_resid developers"
copyright = author
version = release = sknn_resid.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Neural networks with scikit-learn's interface"}

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the docstrings state types and shapes
autosummary_generate = False  # numpydoc loads it; there are no summaries
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
