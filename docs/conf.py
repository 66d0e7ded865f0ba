"""How the documentation is built: `scripts/docs`."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]
# The tutorial's shell lines call the command of this environment.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

from laue_dask import __version__  # noqa: E402

project = "laue_dask"
author = "The laue_dask developers"
copyright = f"2026, {author}"  # noqa: A001  Sphinx's name
version = release = __version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "generated",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = True
nitpick_ignore_regex = [
    # Nothing is fetched when the pages are built, so names of other packages have nowhere to lead.
    (r"py:.*", r"(numpy|np|dask|da|xarray|xr|pandas|pd|matplotlib|zarr|pathlib|os|collections|typing|pydantic)\..*"),
    (
        r"py:.*",
        r"(Path|Iterable|Sequence|Mapping|Any|Literal|NDArray|Axes|PathLike|DataArray|DataFrame|Self|Verification|LabelMap|Card|Removal|NightlyConfig|ExitCode|Progress|Event|Order)",
    ),
    (r"py:.*", r"type\[.*"),
    # Aliases of the package, and records that the pages on files describe.
    (r"py:.*", r"(laue_dask\.)?(api|errors|runtime|pipeline|config|features|reduction|segmentation|io)\..*"),
]
default_role = "code"
smartquotes = False  # of --shape they make –shape
maximum_signature_line_length = 90
add_module_names = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
numpydoc_show_class_members = False

myst_enable_extensions = ["colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True

html_theme = "pydata_sphinx_theme"
html_title = f"laue_dask {release}"
html_static_path = ["_static"]
html_css_files = ["laue.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 2,
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
    "logo": {"text": "laue_dask"},
}
html_sidebars = {"index": [], "tutorial": [], "installation": []}
