"""Predictions for single images of any size, as a user gets them."""

import dataclasses

import numpy as np

JsonTable = dict[str, object]


@dataclasses.dataclass(frozen=True)
class ImageDetections:
    """Objects that a detector found in one image, best first."""

    boxes_xyxy: np.ndarray
    """``[d, 4]`` float32, in pixels of the original image."""
    scores: np.ndarray
    """``[d]`` float32, 0 to 1."""
    classes: np.ndarray
    """``[d]`` int32, 0 to k - 1."""
    labels: tuple[str, ...]
    """Names of ``classes``."""

    def above(self, score: float) -> "ImageDetections":
        """Returns the detections with at least this score."""
        kept = self.scores >= score
        labels = tuple(label for label, keep in zip(self.labels, kept) if keep)
        return ImageDetections(self.boxes_xyxy[kept], self.scores[kept], self.classes[kept], labels)

    def table(self) -> JsonTable:
        """Returns the detections as values of JSON: ``box_xyxy``, ``score`` and ``label`` each."""
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

    def table(self) -> JsonTable:
        """Returns the prediction as values of JSON."""
        rounded = {name: round(value, 6) for name, value in self.probabilities.items()}
        return {
            "label": self.label,
            "probability": rounded[self.label],
            "probabilities": rounded,
        }


Prediction = ImageDetections | ImageClass
"""Prediction for one image."""
