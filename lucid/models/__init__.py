"""Models and their tokenizer."""

from lucid.models.bert.backbone import BERT as BERT
from lucid.models.bert.config import BERTConfig as BERTConfig
from lucid.models.bert.factories import bert_base as bert_base
from lucid.models.bert.factories import bert_for_masked_lm_base as bert_for_masked_lm_base
from lucid.models.bert.factories import bert_for_masked_lm_large as bert_for_masked_lm_large
from lucid.models.bert.factories import bert_for_masked_lm_medium as bert_for_masked_lm_medium
from lucid.models.bert.factories import bert_for_masked_lm_mini as bert_for_masked_lm_mini
from lucid.models.bert.factories import bert_for_masked_lm_small as bert_for_masked_lm_small
from lucid.models.bert.factories import bert_for_masked_lm_tiny as bert_for_masked_lm_tiny
from lucid.models.bert.factories import bert_large as bert_large
from lucid.models.bert.factories import from_builtin as from_builtin
from lucid.models.bert.fill_mask import JointFill as JointFill
from lucid.models.bert.fill_mask import MaskFill as MaskFill
from lucid.models.bert.masked_lm import BERTForMaskedLM as BERTForMaskedLM
from lucid.models.checkpoint import LoadReport as LoadReport
from lucid.text import BERTTokenizerFast as BERTTokenizerFast

__all__ = [
    "BERT",
    "BERTConfig",
    "BERTForMaskedLM",
    "BERTTokenizerFast",
    "JointFill",
    "LoadReport",
    "MaskFill",
    "bert_base",
    "bert_for_masked_lm_base",
    "bert_for_masked_lm_large",
    "bert_for_masked_lm_medium",
    "bert_for_masked_lm_mini",
    "bert_for_masked_lm_small",
    "bert_for_masked_lm_tiny",
    "bert_large",
    "from_builtin",
]
