"""Settings of the API pages: `sphinx-build -W docs/api build/api`."""

import pfljax

project = "pfljax"
release = pfljax.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
templates_path = []
exclude_patterns = []
nb_execution_mode = "off"
html_theme = "alabaster"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes of a NamedTuple are in its docstring; their own entries would repeat them.
autodoc_default_options = {"members": False}
