from .safetensors_format import write_safetensors as write_safetensors
from .weight_file import read_weights as read_weights
