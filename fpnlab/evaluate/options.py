"""Options of the evaluation of trained models."""

from typing import Annotated

from fpnlab.spec import Bounds, Count, Positive, SpecError, spec


@spec
class Evaluate:
    """Evaluation of a trained model."""

    batch_size: Annotated[int, Count] = 64
    """Images per forward pass; a multiple of the training batch, or the reverse."""
    population_examples: Annotated[int, Bounds(least=2.0, most=1e7)] = 1024
    """Training images from which precise statistics are computed (arXiv:2105.07576)."""
    area_bounds: Annotated[tuple[float, float], Positive] = (32.0**2, 96.0**2)
    """Areas in square pixels that end `small` and `medium`; COCO's suit images of 640 pixels."""
    gradient_draws: Annotated[int | None, Bounds(least=2.0, below=2.0**31)] = None
    """Gradients a norm batch from which the noise of batch norm is measured; none: it is not."""

    def __post_init__(self):
        small, medium = self.area_bounds
        if small >= medium:
            wrong = f"is {self.area_bounds}; the bound of small must be below that of medium"
            raise SpecError("Evaluate", [("area_bounds", wrong)])
