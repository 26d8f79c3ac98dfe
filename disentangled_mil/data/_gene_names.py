"""Gene names that nearly match: as R, spreadsheets and other databases write them."""

import re
from collections.abc import Iterable, Mapping, Sequence

# Months in English and German, as spreadsheets display dates; only months that begin a gene's name.
_MONTHS = {
    **dict.fromkeys(("mar", "march", "mrz", "mär"), ("MARCH{n}", "MARCHF{n}", "MARC{n}", "MTARC{n}")),
    **dict.fromkeys(("sep", "sept", "september"), ("SEPT{n}", "SEPTIN{n}", "SEP{n}")),
    **dict.fromkeys(("dec", "dez", "december"), ("DEC{n}", "DELEC{n}")),
    **dict.fromkeys(("oct", "okt", "october"), ("OCT{n}", "OCT-{n}")),
    **dict.fromkeys(("apr", "april"), ("APR-{n}", "APR{n}")),
    **dict.fromkeys(("nov", "november"), ("NOV{n}",)),
    **dict.fromkeys(("feb", "february"), ("FEB{n}",)),
}
_BY_NUMBER = {2: "feb", 3: "mar", 4: "apr", 9: "sep", 10: "oct", 11: "nov", 12: "dec"}
_DAY_MONTH = re.compile(r"(\d{1,2})[-/. ]+([a-zä]+)\.?(?:[-/. ]+\d{2,4})?", re.IGNORECASE)
_MONTH_DAY = re.compile(r"([a-zä]+)\.?[-/. ]+(\d{1,2})", re.IGNORECASE)
_ISO = re.compile(r"\d{4}-(\d{2})-(\d{2})(?:[ T].*)?")
_SLASHES = re.compile(r"(\d{1,2})[/.](\d{1,2})[/.](?:\d{4}|\d{2})")


def genes_of_date(name: str) -> tuple[str, ...]:
    """The genes that a spreadsheet may have turned into this date.

    Args:
        name: name of a gene in a table.

    Returns:
        Possible symbols; none where the name is no date.

    Example:
        >>> genes_of_date("1-Mar"), genes_of_date("2023-09-07"), genes_of_date("EGFR")
        (('MARCH1', 'MARCHF1', 'MARC1', 'MTARC1'), ('SEPT7', 'SEPTIN7', 'SEP7'), ())
    """
    text = name.strip()
    if found := _DAY_MONTH.fullmatch(text):
        pairs = [(found[2].casefold(), found[1])]
    elif found := _MONTH_DAY.fullmatch(text):
        pairs = [(found[1].casefold(), found[2])]
    elif found := _ISO.fullmatch(text):
        pairs = [(_BY_NUMBER.get(int(found[1]), ""), found[2])]
    elif found := _SLASHES.fullmatch(text):  # either order
        pairs = [(_BY_NUMBER.get(int(found[a]), ""), found[b]) for a, b in ((1, 2), (2, 1))]
    else:
        return ()
    return tuple(dict.fromkeys(name.format(n=int(day)) for month, day in pairs for name in _MONTHS.get(month, ())))


def near_names(absent: Iterable[str], present: Sequence[str]) -> dict[str, str]:
    """Genes that a table lacks, but may hold under another name.

    Names are alike if only case, dots, dashes and the ``X`` that R writes before a digit differ. They are also alike
    if a spreadsheet may have turned one into the other.

    Args:
        absent: genes that the table lacks.
        present: names in the table that no gene uses.

    Returns:
        The name in the table for each such gene.

    Example:
        >>> near_names(["HLA-A", "MARCH1", "CD2"], ["HLA.A", "1-Mar"])
        {'HLA-A': 'HLA.A', 'MARCH1': '1-Mar'}
    """
    plain = {_plain(name): name for name in reversed(present)}
    dates = {gene: name for name in reversed(present) for gene in genes_of_date(name)}
    found: dict[str, str] = {}
    for gene in absent:
        if name := dates.get(gene.upper()) or plain.get(_plain(gene)):
            found[gene] = name
    return found


def listed(names: Mapping[str, str], count: int = 5) -> str:
    """The first few genes with their names in the table."""
    rest = len(names) - count
    shown = ", ".join(f"{gene} as {name!r}" for gene, name in list(names.items())[:count])
    return shown + (f" and {rest} more" if rest > 0 else "")


def _plain(name: str) -> str:
    """A name without case and punctuation, and without R's X before a digit."""
    letters = re.sub(r"[^A-Z0-9]", "", name.upper())
    return letters[1:] if re.match(r"X\d", letters) else letters
