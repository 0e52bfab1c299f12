"""Write a run's cut model for other programs.

Torch.export, ONNX (float32 or int8), safetensors, Hugging Face.
"""

from sparsify.exporters.formats import Format
from sparsify.exporters.writer import BATCHES, TOLERANCE, Exported, Quantised, export

__all__ = ["BATCHES", "TOLERANCE", "Exported", "Format", "Quantised", "export"]
