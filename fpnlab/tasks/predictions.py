"""Predictions for single images of any size."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from fpnlab.records.json_files import JsonObject


@dataclasses.dataclass(frozen=True)
class ImageDetections:
    """Objects that a detector found in one image, in descending order of score."""

    boxes_xyxy: Float[np.ndarray, "d 4"]
    """Boxes in pixels of the original image."""
    scores: Float[np.ndarray, " d"]
    """Scores, 0 to 1."""
    classes: Int[np.ndarray, " d"]
    """Class numbers, 0 to k - 1."""
    labels: tuple[str, ...]
    """Names of ``classes``."""

    def above(self, score: float) -> "ImageDetections":
        """Returns the detections with at least this score."""
        kept = self.scores >= score
        labels = tuple(label for label, keep in zip(self.labels, kept) if keep)
        return ImageDetections(self.boxes_xyxy[kept], self.scores[kept], self.classes[kept], labels)

    def table(self) -> JsonObject:
        """Returns the detections as JSON values, each with label, score and box_xyxy."""
        return {
            "detections": [
                {
                    "label": label,
                    "score": round(float(score), 6),
                    "box_xyxy": [round(float(side), 2) for side in box],
                }
                for label, score, box in zip(self.labels, self.scores, self.boxes_xyxy)
            ]
        }


@dataclasses.dataclass(frozen=True)
class ImageClass:
    """The class of one image, and the probabilities of all classes."""

    label: str
    """Name of the most probable class."""
    probability: float
    """Its probability, 0 to 1."""
    probabilities: dict[str, float]
    """Probabilities by class name, in the order of the classes; their sum is 1."""

    def table(self) -> JsonObject:
        """Returns the prediction as JSON values."""
        rounded = {name: round(value, 6) for name, value in self.probabilities.items()}
        return {
            "label": self.label,
            "probability": rounded[self.label],
            "probabilities": rounded,
        }


Prediction = ImageDetections | ImageClass
"""Prediction for one image."""
