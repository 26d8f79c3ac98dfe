"""Figures and tables of a run. Needs the extra ``train``."""

from .._extras import naming_extra

with naming_extra("train"):
    from .maps import prototype_map
    from .page import write_report
    from .tables import results_table

__all__ = ["prototype_map", "results_table", "write_report"]
