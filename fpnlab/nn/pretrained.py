"""Spec of a file of weights that a network starts from."""

from fpnlab.spec import SpecError, spec


@spec
class Pretrained:
    """A file of weights of PyTorch or of safetensors, in place of random initial weights.

    The names are those of torchvision, timm, or the CIFAR ResNets of Y. Idelbayev. A classifier
    takes all of them, but for a dense layer of another number of classes, which is drawn; a
    detector takes those of its backbone.
    """

    path: str
    """The file."""
    sha256: str | None = None
    """SHA-256 of the file, 64 hexadecimal digits; another file is an error. None: any file."""

    def __post_init__(self) -> None:
        digits = set("0123456789abcdef")
        if self.sha256 is not None and (len(self.sha256) != 64 or not digits >= {*self.sha256}):
            wrong = f"is {self.sha256!r}; it must be 64 hexadecimal digits in lower case"
            raise SpecError("Pretrained", [("sha256", wrong)])
