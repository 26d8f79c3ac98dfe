"""Explanations of a prediction: maps of slides from stored features, and genes. Needs the extra ``train``."""

from .._extras import naming_extra

with naming_extra("train"):
    from .agreement import region_agreement
    from .anndata_file import write_anndata
    from .combining import combine_maps
    from .figure import draw_map
    from .gene_attribution import gene_attributions, set_attributions
    from .geojson_file import write_geojson
    from .permutation import permutation_importance
    from .tile_map import TileMap
    from .views import student_view, teacher_view

__all__ = [
    "TileMap",
    "combine_maps",
    "draw_map",
    "gene_attributions",
    "permutation_importance",
    "region_agreement",
    "set_attributions",
    "student_view",
    "teacher_view",
    "write_anndata",
    "write_geojson",
]
