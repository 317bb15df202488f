"""The grid of a study: which trials it has, each a full experiment of its own."""

from typing import Any, Literal

from fpnlab.types import spec


@spec
class Study:
    """Arms x values of one axis x seeds, each a training run with the same examples."""

    axis: str = "train.batch_size"
    """Dotted path of the field that is swept."""
    values: tuple[Any, ...]
    """What the field takes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of parameters and data order; arms are paired by them."""
    arms: dict[str, dict[str, Any]]
    """What is compared: by name, the dotted fields that an arm sets. The first is the baseline."""
    metric: Literal["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"] = "AP"
    """The number on which the report's findings rest."""

    def __post_init__(self):
        for name in ("values", "seeds", "arms"):
            given = getattr(self, name)
            if not given:
                raise ValueError(f"{name} is empty; give one or more")
            if len(set(map(str, given))) < len(given):
                raise ValueError(f"{name} names one entry twice: {list(given)}")
        for arm, settings in self.arms.items():
            if own := {self.axis, "seed"} & settings.keys():
                raise ValueError(
                    f"arms.{arm} sets {min(own)}, which the study itself sets by its values and "
                    "seeds; leave it out of the arm"
                )
