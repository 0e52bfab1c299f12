"""Write a run's cut model for other programs.

Torch.export, ONNX (float32 or int8), safetensors, Hugging Face, torch-pruning.
"""

from sparsify.exporters.dynamic_axes import DynamicAxis
from sparsify.exporters.formats import Format
from sparsify.exporters.probe_inputs import BATCHES
from sparsify.exporters.writer import TOLERANCE, Exported, Quantised, export

__all__ = ["BATCHES", "TOLERANCE", "DynamicAxis", "Exported", "Format", "Quantised", "export"]
