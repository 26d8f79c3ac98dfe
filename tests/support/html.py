"""What a reader finds on an HTML page."""

from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A page whose tags are checked to be balanced.

    Attributes:
        text: text by the name of its section; that before the first section is under ``""``.
        links: targets of links.
        images: (alternative text, address) of every picture by section.
        rows: cells of every table row by section.
        tags: names of all tags.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.links, self.tags, self.ids = {"": ""}, [], set(), []
        self.images, self.rows = {"": []}, {"": []}
        self._section, self._open = "", []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = attributes["aria-label"]
            self.text[self._section], self.images[self._section], self.rows[self._section] = "", [], []
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "img":
            self.images[self._section].append((attributes["alt"], attributes["src"]))
        if tag == "tr":
            self.rows[self._section].append([])
        if tag in ("td", "th"):
            self.rows[self._section][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text[self._section] += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[self._section][-1][-1] += data


def content(address: str) -> bytes:
    """The file that the address of a picture holds."""
    kind, _, data = address.partition(";base64,")
    assert kind in ("data:image/svg+xml", "data:image/png")
    return b64decode(data, validate=True)
