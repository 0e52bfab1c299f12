"""A run's cut model as a file for other programs: torch.export, ONNX (in floats or integers), plain safetensors or a Hugging Face folder."""

from sparsify.exporters.formats import Format
from sparsify.exporters.writer import BATCHES, TOLERANCE, Exported, Quantised, export

__all__ = ["BATCHES", "TOLERANCE", "Exported", "Format", "Quantised", "export"]
