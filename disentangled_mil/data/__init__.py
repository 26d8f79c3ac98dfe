"""Slides, genes and patients: readers and the planted cohort. Needs the extra ``train``."""

from .cohort import Cohort, Sample, StoredBag
from .cohort_file import read_cohort
from .expression import ExpressionOptions, ExpressionPipeline, TableLayout, read_expression
from .folds import PatientSplit, inner_split, patient_folds
from .gene_sets import GeneSets, gene_subspaces, read_gmt
from .hdf5 import has_coords, merge_slides, read_bag, slide_width, write_bag
from .planted import PlantedCohort, planted_cohort, write_cohort

__all__ = [
    "Cohort",
    "ExpressionOptions",
    "ExpressionPipeline",
    "GeneSets",
    "PatientSplit",
    "PlantedCohort",
    "Sample",
    "StoredBag",
    "TableLayout",
    "gene_subspaces",
    "has_coords",
    "inner_split",
    "merge_slides",
    "patient_folds",
    "planted_cohort",
    "read_bag",
    "read_cohort",
    "read_expression",
    "read_gmt",
    "slide_width",
    "write_bag",
    "write_cohort",
]
