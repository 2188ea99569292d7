"""Devices that tests run on."""

import pytest
import torch

ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
)
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
