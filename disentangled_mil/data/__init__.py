"""Slides, genes and patients: readers and the planted cohort."""
