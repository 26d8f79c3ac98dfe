"""Descriptions of saved models that somebody changed, and sealed again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disentangled_mil._files import json_digest


def change_description(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change a description in place; its SHA-256 and that of the weights fit again."""
    path = path.with_suffix(".json")
    description = json.loads(path.read_text())
    weights = path.with_suffix(".safetensors").read_bytes()
    description["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    change(description)
    if "sha256" in description:
        description["sha256"] = json_digest({key: value for key, value in description.items() if key != "sha256"})
    path.write_text(json.dumps(description))
    return path
