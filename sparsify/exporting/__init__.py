"""A run's cut model as a file for other programs: torch.export, ONNX, plain safetensors or a Hugging Face folder."""

from sparsify.exporting.formats import Format
from sparsify.exporting.writing import BATCHES, TOLERANCE, Exported, export

__all__ = ["BATCHES", "TOLERANCE", "Exported", "Format", "export"]
