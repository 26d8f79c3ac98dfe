"""TCGA barcodes: the patient in them, and one aliquot of each patient.

A barcode names the patient (``TCGA-02-0047``), then sample type and vial (``01A``), portion and analyte (``01R``),
plate (``1849``) and center (``01``). Several aliquots of a patient are no replicates, so one of them is taken:

1. Normal tissue, blood and controls (sample types 10 and above) are left out.
2. The lowest sample type is taken: a primary tumor (01) before a recurrence (02) and a metastasis (06).
3. Of these, the first vial (A before B), then the analyte H, R or T in this order, then the highest plate, and the
   barcode that sorts last.

The rule for analytes and plates is that of the Broad Institute's GDAC Firehose for replicate samples.
"""

import re
from collections.abc import Sequence

_BARCODE = re.compile(
    r"(?P<patient>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})"
    r"(-(?P<type>\d{2})(?P<vial>[A-Z]?)(-\d{2}(?P<analyte>[A-Z]?)(-(?P<plate>[A-Z0-9]{4}))?)?)?(-.*)?"
)
_ANALYTES = ("H", "R", "T")
_FIRST_NORMAL = 10


def tcga_patient(name: str) -> str | None:
    """The patient of a TCGA barcode, which R may have written with dots.

    Args:
        name: barcode of a patient, a sample, an aliquot or a slide.

    Returns:
        The first 12 characters in capitals, with dashes; None where the name is no TCGA barcode.

    Example:
        >>> tcga_patient("TCGA.02.0047.01A.01R.1849.01"), tcga_patient("C3L-00016")
        ('TCGA-02-0047', None)
    """
    found = _BARCODE.fullmatch(_dashed(name))
    return found["patient"] if found else None


def one_aliquot_each(names: Sequence[str]) -> dict[str, int]:
    """Choose one aliquot of every patient by the rule of this module.

    Args:
        names: barcodes; a name that is no TCGA barcode is a patient of its own.

    Returns:
        The position of the chosen aliquot of every patient, patients in order of appearance.

    Example:
        >>> one_aliquot_each(["TCGA-02-0047-11A", "TCGA-02-0047-02A", "TCGA-02-0047-01A-01R", "P7"])
        {'TCGA-02-0047': 2, 'P7': 3}
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if _rank(name)[0] < _FIRST_NORMAL:
            places.setdefault(tcga_patient(name) or name, []).append(place)
    chosen = {}
    for patient, several in places.items():
        first = min(_rank(names[place]) for place in several)
        chosen[patient] = max(
            (place for place in several if _rank(names[place]) == first),
            key=lambda place: (_part(names[place], "plate"), _dashed(names[place])),
        )
    return chosen


def _rank(name: str) -> tuple[int, str, int]:
    """Sample type, vial and analyte; lower is better."""
    analyte = _part(name, "analyte")
    order = _ANALYTES.index(analyte) if analyte in _ANALYTES else len(_ANALYTES)
    return int(_part(name, "type") or 0), _part(name, "vial"), order


def _part(name: str, part: str) -> str:
    """A part of a barcode; empty where the name has none."""
    found = _BARCODE.fullmatch(_dashed(name))
    return (found[part] or "") if found else ""


def _dashed(name: str) -> str:
    return name.strip().upper().replace(".", "-")
