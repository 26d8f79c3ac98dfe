"""Sphinx configuration: ``sphinx-build -W --keep-going -n docs docs/_build``."""

import runpy
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

from disentangled_mil import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "disentangled_mil"
author = "The disentangled_mil authors"
copyright = f"2026, {author}"
release = __version__

extensions = [
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_extensions", "gallery"]
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_title = f"disentangled_mil {release}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2

autodoc_mock_imports = ["huggingface_hub"]  # of an extra that the pages are built without
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# The documentation of other libraries is not linked, so that a build needs no network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|np|npt|numpy|pd|pandas|scipy|scanpy|h5py|tqdm|argparse|pathlib|collections|typing|os)\..*"),
    # Variables of types, private base classes, and classes within a default.
    ("py:.*", r"(.*\.)?(Self|SomeTask|Values|Rows|Made|TensorCollection)|<class .*"),
    ("py:.*", r"(Tensor|Path|Sequence|Mapping|Iterable|Callable|Any|PathLike.*|Unpack.*|optional|ArrayLike)"),
]

# Sections of a docstring that become fields beside its parameters.
_FIELDS = {"Shape:", "Source:", "Differs from the source:"}


def setup(app: Sphinx) -> None:
    """Register the hooks of this project."""
    app.connect("builder-inited", _draw_gallery)
    app.connect("autodoc-process-docstring", _fields, priority=400)  # napoleon does not know these sections
    app.connect("missing-reference", _by_last_name)


def _draw_gallery(app: Sphinx) -> None:
    """Run the gallery scripts whose picture or page is missing or older than the script."""
    for script in sorted((Path(app.srcdir) / "gallery").glob("*.py")):
        suffix = ".html" if script.stem.startswith("report") else ".png"
        picture = script.parent / "_generated" / f"{script.stem}{suffix}"
        if not picture.is_file() or picture.stat().st_mtime < script.stat().st_mtime:
            runpy.run_path(str(script))["draw"](picture)


def _fields(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn ``Shape:`` and its like, each with an indented block, into fields."""
    lines[:] = [f":{line}" if line in _FIELDS else line for line in lines]


def _by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.reference | None:
    """Resolve a name to where it is documented: ``disentangled_mil.bags.Grid`` to ``disentangled_mil.Grid``."""
    if node.get("refdomain") != "py":
        return None
    parts = node["reftarget"].strip(".").split(".")
    objects = env.get_domain("py").objects  # type: ignore[attr-defined]
    for tail in (parts, parts[-2:], parts[-1:]):
        found = [name for name, entry in objects.items() if not entry.aliased and name.split(".")[-len(tail) :] == tail]
        if len(found) == 1:
            target = objects[found[0]]
            return make_refnode(app.builder, node["refdoc"], target.docname, target.node_id, contnode, found[0])
    return None
