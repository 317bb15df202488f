"""Predictions to numbers: COCO average precision, population statistics."""
