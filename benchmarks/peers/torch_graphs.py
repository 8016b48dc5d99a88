"""The checkpoint as torch modules that can be exported: logits, encoder, and logits of some rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

GRAPHS = {"logits": 2, "encoder": 2, "rows": 3}
"""Names, and numbers of inputs: ids, mask, rows."""
INPUTS = ("ids", "mask", "rows")


def module(graph: str, folder: Path, attention: str) -> Any:
    """Return a torch module in eval mode.

    Parameters
    ----------
    graph : str, a name in `GRAPHS`
    folder : path of the checkpoint
    attention : "sdpa" or "eager"
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.BertForMaskedLM.from_pretrained(folder, attn_implementation=attention)

    class Graph(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, rows: Any = None) -> Any:
            if graph == "logits":
                return self.model(input_ids=ids, attention_mask=mask).logits
            hidden = self.model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            return hidden if graph == "encoder" else self.model.cls(hidden.flatten(0, 1)[rows])

    return Graph().eval()


def example(graph: str) -> tuple[Any, ...]:
    """Return inputs to trace a module with."""
    import torch

    ids = torch.randint(1000, 2000, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return (ids, mask, torch.tensor([1, 4, 9]))[: GRAPHS[graph]]
