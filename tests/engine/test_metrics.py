"""SSIM against scikit-image's."""

import numpy as np
import pytest
import torch
from kontextkit.engine.metrics.ssim import ssim
from skimage.metrics import structural_similarity


@pytest.mark.parametrize("size", [(11, 11), (32, 47), (64, 64)])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_ssim_is_scikit_images(size, noise):
    rng = np.random.default_rng(0)
    a = rng.random((2, 3, *size)).astype(np.float32) * 0.5 + 0.25
    b = np.clip(a + rng.normal(0, noise, a.shape), 0, 1).astype(np.float32)
    ours = ssim(torch.from_numpy(a), torch.from_numpy(b))
    for i in range(2):
        theirs, whole = structural_similarity(
            a[i], b[i], gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=0,
            full=True,
        )  # fmt: skip
        inside = whole[:, 5:-5, 5:-5].mean() if min(size) > 11 else whole[:, 5, 5].mean()
        assert ours[i].item() == pytest.approx(inside, abs=1e-5)
        assert min(size) == 11 or ours[i].item() == pytest.approx(theirs, abs=1e-5)


def test_ssim_can_be_learnt_from():
    a = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    b = (a * 0.5).requires_grad_()
    ssim(a, b).mean().backward()
    assert b.grad.isfinite().all()
    assert b.grad.abs().sum() > 0
