"""Models out of the door: folders to share, and ONNX files that predict without PyTorch. Needs the extra ``train``."""

from .._extras import naming_extra

with naming_extra("train"):
    from .model_card import CardTexts
    from .onnx_file import export_onnx
    from .pretrained import from_pretrained, save_pretrained
    from .student_graph import StudentGraph, StudentResult

__all__ = ["CardTexts", "StudentGraph", "StudentResult", "export_onnx", "from_pretrained", "save_pretrained"]
