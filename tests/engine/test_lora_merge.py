"""Adapters merged into weights, against the formulas written out by hand."""

from dataclasses import replace

import pytest
import torch
from kontextkit.engine.lora.merge import merged
from kontextkit.engine.quant import PackedTensor, QuantLinear
from loras import KINDS, error, random
from loras import merged as by_hand


@pytest.mark.parametrize("strength", [1.0, -0.6])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_as_its_paper_says(kind, strength):
    weight = random(48, 64, seed=1) * 0.1
    adapter = KINDS[kind](QuantLinear(PackedTensor(weight, "F32", (48, 64))))
    before = weight.clone()
    assert error(merged(weight, adapter, strength), by_hand(weight, adapter, strength)) < 1e-6
    assert torch.equal(weight, before)


def test_a_row_of_zeros_stays_a_number_under_dora():
    weight = random(48, 64, seed=1) * 0.1
    weight[3] = 0
    adapter = KINDS["dora"](QuantLinear(PackedTensor(weight, "F32", (48, 64))))
    assert merged(weight, replace(adapter, up=adapter.up * 0), 1.0).isfinite().all()
