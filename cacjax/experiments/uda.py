"""What the experiments compare: networks to train, the columns of each table with the published figures, and sizes."""

from typing import NamedTuple


class Network(NamedTuple):
    """A training: a file of configs/ with its words, what is set in it, and the networks that its stages need, {stage: name}.

    Without a config nothing is trained: it is the network that it needs as "source". scoring: what `score` is told, beside.
    """

    config: str = ""
    words: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    needs: dict[str, str] = {}  # noqa: RUF012
    scoring: tuple[str, ...] = ()


class Column(NamedTuple):
    """One column of a table: a network on held-out scans of a protocol, with or without reduction of false positives.

    published: sensitivity, FP volume in mm3 and F1, averaged over all scans, or None where the paper has no such column.
    """

    title: str
    network: str
    protocol: str
    reduced: bool
    published: tuple[float, float, float] | None = None


class Experiment(NamedTuple):
    """Networks by name and the columns made of them."""

    networks: dict[str, Network]
    columns: tuple[Column, ...]


class Size(NamedTuple):
    """How large: the word of the configs, the grid of the held-out scans (voxels; mm), how many of them per protocol, and which arm
    has the statistics that its config has anyway, and so is the network `adapted`."""

    words: tuple[str, ...]
    shape: tuple[int, int, int]
    adapted: str
    scans: int = 40
    spacing_mm: tuple[float, float, float] = (1.5, 0.66, 0.66)


SIZES = {
    "tiny": Size(("tiny",), (80, 208, 208), "critic_joint", scans=20),
    "small": Size(("tiny",), (80, 208, 208), "critic_joint"),
    "published": Size((), (96, 256, 256), "critic_by_domain"),
}

QUICK = {
    "source": Network("lessmann.py"),
    "adapted": Network("uda.py", needs={"source": "source"}),
    "source_tone": Network("lessmann.py", ("tone",)),
    "adapted_tone": Network("uda.py", needs={"source": "source_tone"}),
}
# A clipped critic's values differ by 1 between the domains, these by tens and hundreds: weighted to speak about as loud.
PENALISED = ("critic.statistics=none", "critic.constraint=gradient_penalty", "adversarial_weight=0.02")
SPECTRAL = ("critic.statistics=none", "critic.constraint=spectral", "adversarial_weight=0.002")
WIDER = {
    "adversarial_only": Network("uda.py", settings=("classification_weight=0.0",), needs={"source": "source"}),
    "classification_only": Network("uda.py", settings=("adversarial_weight=0.0",), needs={"source": "source"}),
    "critic_by_domain": Network("uda.py", settings=("critic.statistics=domain",), needs={"source": "source"}),
    "critic_joint": Network("uda.py", settings=("critic.statistics=joint",), needs={"source": "source"}),
    "generator_by_domain": Network(
        "uda.py", settings=("critic.statistics=joint", "generator.statistics=domain"), needs={"source": "source"}
    ),
    "gradient_penalty": Network("uda.py", settings=PENALISED, needs={"source": "source"}),
    "spectral": Network("uda.py", settings=SPECTRAL, needs={"source": "source"}),
    "source_view": Network(needs={"source": "source"}, scoring=("view=contrast_removed",)),
    "adapted_view": Network("uda.py", ("view",), needs={"source": "source"}),
    "source_3": Network("lessmann.py", ("three",)),
    "adapted_3": Network("uda.py", ("three",), needs={"source": "source_3"}),
    "source_chest": Network("lessmann.py", settings=("data.splits.source_train.protocol=chest",)),
    "adapted_chest": Network("uda.py", settings=("data.splits.source_train.protocol=chest",), needs={"source": "source_chest"}),
}


def both(title, network, published=(None, None)):
    """The two CCTA columns of a network: without and with reduction of false positives."""
    return tuple(Column(title, network, "ccta", reduced, published[reduced]) for reduced in (False, True))


def arm(title, network):
    """The CCTA column of an arm that the paper does not have, with reduction of false positives: it is scored several times faster."""
    return Column(title, network, "ccta", True)


EXPERIMENTS = {
    "uda-quick": Experiment(
        QUICK,
        both("source network", "source")
        + both("adapted", "adapted")
        + both("source network, tone curves", "source_tone")
        + both("adapted, tone curves", "adapted_tone"),
    ),
    "uda-table2": Experiment(
        WIDER | QUICK,  # the longest training first
        (
            Column("source network", "source", "cardiac", False, (0.89, 73.6, 0.66)),
            *both("source network", "source", ((0.41, 132.0, 0.16), None)),
            *both("adapted", "adapted", ((0.78, 64.5, 0.41), (0.80, 19.8, 0.66))),
            *both("adapted without L_cls", "adversarial_only", ((0.68, 25.8, 0.49), None)),
            arm("adapted without L_adv", "classification_only"),
            arm("critic by domain", "critic_by_domain"),
            arm("critic joint", "critic_joint"),
            arm("critic joint, generator by domain", "generator_by_domain"),
            arm("critic with gradient penalty", "gradient_penalty"),
            arm("critic with spectral norm", "spectral"),
            arm("source network, contrast removed", "source_view"),
            arm("adapted, contrast removed", "adapted_view"),
            arm("source network, tone curves", "source_tone"),
            arm("adapted, tone curves", "adapted_tone"),
            arm("source network, three orientations", "source_3"),
            arm("adapted, three orientations", "adapted_3"),
            arm("source network from chest CT", "source_chest"),
            arm("adapted, source chest CT", "adapted_chest"),
        ),
    ),
}


def distinct(experiment, size) -> Experiment:
    """The experiment without the arm that at this size is the network `adapted`, which then stands in its columns."""
    networks = {name: network for name, network in experiment.networks.items() if name != size.adapted}
    shown = (column._replace(network="adapted") if column.network == size.adapted else column for column in experiment.columns)
    return Experiment(networks, tuple(shown))
