from .safetensors_format import write_safetensors as write_safetensors
from .torch_weights import export_weights as export_weights
from .torch_weights import import_weights as import_weights
from .weight_file import read_weights as read_weights
