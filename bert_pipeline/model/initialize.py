"""Where training starts."""

import torch
from transformers import BertForMaskedLM, BertForPreTraining


@torch.no_grad()
def initialize_informed(model: BertForPreTraining | BertForMaskedLM, unigram: torch.Tensor) -> None:
    """Start from what is known of any text: the decoder's bias is the log-frequency of each token."""
    model.cls.predictions.bias.copy_(unigram)
