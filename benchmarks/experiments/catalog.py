"""Every experiment by its name, in the order of the page."""

from .ablation import ABLATION
from .baselines import BASELINES
from .distillation import DISTILLATION
from .experiment import Experiment
from .gene_selection import GENE_SELECTION
from .pan_cancer import PAN_CANCER
from .shift import SHIFT
from .subspaces import SUBSPACES
from .unpaired import UNPAIRED
from .where_it_looks import WHERE_IT_LOOKS

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        DISTILLATION,
        BASELINES,
        ABLATION,
        SUBSPACES,
        GENE_SELECTION,
        WHERE_IT_LOOKS,
        SHIFT,
        UNPAIRED,
        PAN_CANCER,
    )
}
