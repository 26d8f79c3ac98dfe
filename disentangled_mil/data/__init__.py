"""Slides, genes and patients: readers and the planted cohort. Needs the extra ``train``."""

from .._extras import naming_extra

with naming_extra("train"):
    from .cohort import Cohort, Sample, StoredBag
    from .cohort_file import read_cohort
    from .expression import ExpressionOptions, ExpressionPipeline, TableLayout, read_expression
    from .folds import PatientSplit, inner_split, patient_folds
    from .gene_sets import GeneSets, gene_subspaces, read_gmt
    from .planted import PlantedCohort, planted_cohort, write_cohort
    from .slide_dataset import SlideDataset
    from .slide_reading import SlideReading, TileFacts
    from .slides import SlideBag, SlideError, SlideSource, read_bag, slide_files, slide_source, write_bag

__all__ = [
    "Cohort",
    "ExpressionOptions",
    "ExpressionPipeline",
    "GeneSets",
    "PatientSplit",
    "PlantedCohort",
    "Sample",
    "SlideBag",
    "SlideDataset",
    "SlideError",
    "SlideReading",
    "SlideSource",
    "StoredBag",
    "TableLayout",
    "TileFacts",
    "gene_subspaces",
    "inner_split",
    "patient_folds",
    "planted_cohort",
    "read_bag",
    "read_cohort",
    "read_expression",
    "read_gmt",
    "slide_files",
    "slide_source",
    "write_bag",
    "write_cohort",
]
