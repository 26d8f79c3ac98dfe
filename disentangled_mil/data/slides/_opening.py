"""The file of a slide in any layout, told apart by its content."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from os import PathLike
from pathlib import Path

from ..._checks import check_type
from ..._errors import reading
from ._anndata import check_unnamed, is_anndata, open_anndata_group, open_zarr_slide, refuse_shapes, require_anndata
from ._hdf5 import open_hdf5
from ._hdf5_writers import open_hdf5_slide, refuse_other_coordinates
from ._stored import StoredSlide
from ._tensor_file import open_tensor_slide
from .source import SlideError

# The first bytes of files of PyTorch: an archive, or a pickle before version 1.6.
_OF_PYTORCH = (b"PK\x03\x04", b"\x80")


def as_paths(paths: Sequence[str | Path]) -> tuple[Path, ...]:
    """Paths of files, at least one."""
    if not paths:
        raise ValueError("paths must name at least one file, got none")
    for path in paths:
        check_type("paths", path, (str, PathLike), "paths of files")
    return tuple(map(Path, paths))


def check_step(step: float | None) -> None:
    """Check the side of a grid cell before any file is opened."""
    if step is not None:
        check_type("step", step, Real, "a number")
        if not 0 < step < float("inf"):
            raise ValueError(f"step must be positive and finite, got {step}")


@contextmanager
def open_slide(path: Path, features: str | None, coords: str | None, *, as_set: bool) -> Iterator[StoredSlide]:
    """The slide in a file of any layout; unless it is read as a set, coordinates under unknown names are refused."""
    for argument, name in (("features", features), ("coords", coords)):
        if name is not None:
            check_type(argument, name, str, "a name")
    with reading(path, kind=SlideError):
        try:
            is_folder, is_file = path.is_dir(), path.is_file()
            first = _first_bytes(path) if is_file else b""
        except PermissionError as error:
            raise PermissionError(f"{path}: must be readable, got no permission to read it") from error
        if is_folder:
            with open_zarr_slide(path, features, coords, as_set=as_set) as slide:
                if not as_set and slide.coords is None:
                    refuse_shapes(path, slide.source)
                yield slide
        elif not is_file:
            raise FileNotFoundError(f"{path}: there is no such file")
        elif first.startswith(_OF_PYTORCH):
            with open_tensor_slide(path, features, coords) as slide:
                yield slide
        else:
            with open_hdf5(path) as file:
                if is_anndata(file):
                    require_anndata(path)
                    check_unnamed(path, features)
                    yield open_anndata_group(path, file, coords, as_set=as_set)
                    return
                slide = open_hdf5_slide(path, file, features, coords)
                if not as_set and slide.coords is None and slide.source.tokens > 1:
                    refuse_other_coordinates(path, file, slide.source.tokens)
                yield slide


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)
