"""Models out of the door: ONNX files that predict without PyTorch, and folders for the Hugging Face Hub."""

from .onnx_file import export_onnx
from .student_graph import StudentGraph, StudentResult

__all__ = ["StudentGraph", "StudentResult", "export_onnx"]
