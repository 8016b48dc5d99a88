"""ONNX Runtime: the graph as torch exports it, and with the fusions of onnxruntime.transformers.

The graph is traced from the form with attention spelled out, the one whose nodes the fusions know: they find every layer's
attention, and the embeddings. `make` fails if they do not.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from benchmarks.checkpoint import SIZES
from benchmarks.peers import Setting
from benchmarks.peers.graph import GraphPeer
from benchmarks.processes import in_own_process


def make(variant: str, setting: Setting) -> OnnxRuntime:
    """Return the peer; its graphs are made where they are missing."""
    return OnnxRuntime(variant, setting)


class OnnxRuntime(GraphPeer):
    """Sessions over graphs of any shape."""

    def __init__(self, variant: str, setting: Setting) -> None:
        super().__init__(variant, setting)
        self.is_fused = variant != "onnxruntime"
        self.sessions: dict[str, Any] = {}

    def run(self, graph: str, *inputs: Any) -> Any:
        """Return what a graph makes of int64 arrays."""
        if graph not in self.sessions:
            self.sessions[graph] = self._session(graph)
        session, names = self.sessions[graph]
        return session.run(None, dict(zip(names, inputs, strict=True)))[0]

    def _session(self, graph: str) -> tuple[Any, list[str]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.setting.n_threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        path = graph_file(self.setting, graph, self.is_fused)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return session, [one.name for one in session.get_inputs()]


def make_files(variant: str, setting: Setting) -> None:
    """Make the graphs of a variant that are missing."""
    for graph in ("rows",) if variant.endswith("-rows") else ("logits", "encoder"):
        graph_file(setting, graph, variant != "onnxruntime")


def graph_file(setting: Setting, graph: str, is_fused: bool) -> Path:
    """Return the file of a graph, made where it is missing."""
    path = setting.cache / "onnx" / f"{graph}{'-fused' if is_fused else ''}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        if is_fused:
            in_own_process(_fuse, graph_file(setting, graph, False), unfinished, setting.size)
        else:
            in_own_process(_export, setting.folder, graph, unfinished)
        unfinished.rename(path)
    return path


def _export(folder: Path, graph: str, path: Path) -> None:
    import torch

    from benchmarks.peers.torch_graphs import INPUTS, example, module

    inputs = example(graph)
    axes = {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}, "rows": {0: "asked"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module(graph, folder, "eager"),
            inputs,
            str(path),
            dynamo=False,
            input_names=list(INPUTS[: len(inputs)]),
            output_names=["out"],
            dynamic_axes={name: axes[name] for name in INPUTS[: len(inputs)]},
            opset_version=17,
        )


def _fuse(source: Path, path: Path, size: str) -> None:
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    n_layers, width = SIZES[size]
    fused = optimizer.optimize_model(
        str(source), model_type="bert", num_heads=width // 64, hidden_size=width, optimization_options=FusionOptions("bert"), opt_level=0
    )
    found = fused.get_fused_operator_statistics()
    if found["Attention"] != n_layers or found["EmbedLayerNormalization"] != 1:
        raise RuntimeError(f"the fusions found {found['Attention']} attentions of {n_layers}: the exported graph is not what they know")
    fused.save_model_to_file(str(path))


def cold_start(variant: str, setting: Setting) -> str:
    """Return the program of a cold start."""
    is_lean = variant == "onnxruntime-rows"
    return f"""
import numpy as np, onnxruntime
from tokenizers import Tokenizer
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {setting.n_threads}
session = onnxruntime.InferenceSession({str(graph_file(setting, "rows" if is_lean else "logits", is_lean))!r}, options)
ids = np.array([Tokenizer.from_file({str(setting.folder / "tokenizer.json")!r}).encode(TEXT).ids])
row = np.flatnonzero(ids[0] == 103)
inputs = {{"ids": ids, "mask": np.ones_like(ids)}}
logits = session.run(None, {{**inputs, "rows": row}} if {is_lean} else inputs)[0].reshape(-1, 30522)
x = logits[0 if {is_lean} else row[0]]
best = np.argsort(-x)[:5]
scores = np.exp(x[best] - x.max()) / np.exp(x - x.max()).sum()
IDS, SCORES = best.tolist(), scores.tolist()
"""
