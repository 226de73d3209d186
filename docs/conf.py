"""How Sphinx builds the guides and the reference; with `make docs` a warning is an error.

Sphinx with autodoc and numpydoc, because it is what the field's packages use (NumPy, PyTorch,
FlashInfer, tvm-ffi), reads NumPy docstrings and checks every cross-reference; pdoc and mkdocstrings
leave a reference that leads nowhere as plain text.
"""

import kvctl

project = "kvctl"
author = "kvctl contributors"
release = version = kvctl.__version__
extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
root_doc = "index"
html_theme = "furo"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["torch", "transformers"]  # the pages are built without it
numpydoc_show_class_members = False  # autodoc documents them
default_role = "code"  # `name` in a docstring is a parameter or an attribute more often than a link
myst_heading_anchors = 2

# Every reference must lead somewhere. Other projects' inventories would need a network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(numpy|np|npt|torch|transformers|tvm|tvm_ffi|matplotlib)\..*"),
    ("py:.*", r"(os|pathlib|collections|contextlib|types|typing)\..*"),
    # Types of annotations: aliases that only type checkers see, and types of inner modules.
    ("py:class", r"\w+|.*\._.*|kvctl(\.\w+){3,}"),
]
