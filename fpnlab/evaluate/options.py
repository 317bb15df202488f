"""Options of the evaluation of trained models."""

from typing import Annotated

from fpnlab.spec import Bounds, Count, Positive, SpecError, spec


@spec
class Evaluate:
    """Options of the evaluation of a trained model."""

    batch_size: Annotated[int, Count] = 64
    """Images per forward pass; for batch statistics rounded to whole statistics groups."""
    population_examples: Annotated[int, Bounds(least=2.0, most=1e7)] = 1024
    """Number of training images that precise statistics are computed from (arXiv:2105.07576)."""
    area_bounds: Annotated[tuple[float, float], Positive] = (32.0**2, 96.0**2)
    """Largest areas of small and medium boxes in square pixels; COCO's are for 640x480 pixels."""
    gradient_draws: Annotated[int | None, Bounds(least=2.0, below=2.0**31)] = None
    """Gradients per `norm_batch` to measure the noise of batch norm with; none: no measurement."""

    def __post_init__(self) -> None:
        small, medium = self.area_bounds
        if small >= medium:
            wrong = f"is {self.area_bounds}; the bound of small must be below that of medium"
            raise SpecError("Evaluate", [("area_bounds", wrong)])
