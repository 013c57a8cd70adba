"""Towers as files: writing them as ONNX, OpenVINO or `torch.export`, checked, and running them."""

from __future__ import annotations

from elip_plugin.export.exported import Exported, load
from elip_plugin.export.write import export

__all__ = ["Exported", "export", "load"]
