"""OpenVINO, converted from torch, compiled for each shape that is met, in float32.

Float32 has to be asked for: on CPUs with bfloat16 arithmetic, OpenVINO would compute in that.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from benchmarks.peers import Setting
from benchmarks.peers.graph import GraphPeer
from benchmarks.processes import in_own_process


def make(variant: str, setting: Setting) -> OpenVino:
    """Return the peer; its graphs are made where they are missing."""
    return OpenVino(variant, setting)


def options(setting: Setting) -> dict[str, Any]:
    """Return how models are compiled."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": setting.n_threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }


class OpenVino(GraphPeer):
    """A compiled model for each graph and shape."""

    def __init__(self, variant: str, setting: Setting) -> None:
        super().__init__(variant, setting)
        import openvino

        self.core = openvino.Core()
        self.requests: dict[Any, Any] = {}

    def run(self, graph: str, *inputs: Any) -> Any:
        """Return what a graph makes of int64 arrays."""
        key = (graph, *(array.shape for array in inputs))
        if key not in self.requests:
            model = self.core.read_model(graph_file(self.setting, graph))
            model.reshape({one: list(array.shape) for one, array in zip(model.inputs, inputs, strict=True)})
            self.requests[key] = self.core.compile_model(model, "CPU", options(self.setting)).create_infer_request()
        # The array lives as long as the request, until its next run.
        return self.requests[key].infer(inputs, share_inputs=True, share_outputs=True)[0]


def make_files(variant: str, setting: Setting) -> None:
    """Make the graphs of a variant that are missing."""
    for graph in ("rows",) if variant.endswith("-rows") else ("logits", "encoder"):
        graph_file(setting, graph)


def graph_file(setting: Setting, graph: str) -> Path:
    """Return the file of a graph, made where it is missing."""
    path = setting.cache / "openvino" / f"{graph}.xml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        in_own_process(_convert, setting.folder, graph, path)
    return path


def _convert(folder: Path, graph: str, path: Path) -> None:
    import openvino
    import torch

    from benchmarks.peers.torch_graphs import example, module

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(module(graph, folder, "sdpa"), example_input=example(graph))
    unfinished = path.with_name(f"{graph}-unfinished.xml")
    openvino.save_model(model, unfinished, compress_to_fp16=False)
    # The file of weights first: the other one says that both are there.
    unfinished.with_suffix(".bin").rename(path.with_suffix(".bin"))
    unfinished.rename(path)


def cold_start(variant: str, setting: Setting) -> str:
    """Return the program of a cold start; the compiled model comes from OpenVINO's own cache."""
    return f"""
import numpy as np, openvino
from tokenizers import Tokenizer
core = openvino.Core()
core.set_property({{"CACHE_DIR": {str(setting.cache / "openvino" / "compiled")!r}}})
ids = np.array([Tokenizer.from_file({str(setting.folder / "tokenizer.json")!r}).encode(TEXT).ids])
row = np.flatnonzero(ids[0] == 103)
model = core.compile_model({str(graph_file(setting, "rows"))!r}, "CPU", {options(setting)!r})
x = model([ids, np.ones_like(ids), row])[0][0]
best = np.argsort(-x)[:5]
scores = np.exp(x[best] - x.max()) / np.exp(x - x.max()).sum()
IDS, SCORES = best.tolist(), scores.tolist()
"""
