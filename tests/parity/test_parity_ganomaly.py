"""Losses and score, from the codes and features that the authors' networks give.

Left out: batch normalisation with the statistics of the test batch, and scores scaled to the range of the
test set. Encoders and decoder are those of AutoEncoder here: weights cannot be put into them.
"""

import pytest
import torch

from skanomaly._losses import absolute_error, feature_error
from skanomaly.training import discriminator_loss


@pytest.mark.parametrize("mode", ["eval_mode", "train_mode"])
def test_losses(parity, mode):
    numbers = parity("ganomaly")

    def given(name):
        return numbers.tensor(f"out/{mode}/{name}")

    x, y = numbers.input("images"), given("reconstruction")
    z, again = given("code"), given("code_of_reconstruction")
    features = (given(f"discriminator/features_{kind}").flatten(1) for kind in ("real", "fake"))
    terms = {
        "adversarial": feature_error(*features).mean(),
        "reconstruction": absolute_error(y, x).mean(),
        "code": feature_error(z, again).mean(),
    }
    for name, term in terms.items():
        numbers.agrees(f"{mode}/loss_{name}", term)
    weights = {"adversarial": 1, "reconstruction": 50, "code": 1}
    numbers.agrees(f"{mode}/loss_generator", sum(weights[name] * term for name, term in terms.items()))
    logits = (torch.logit(given(f"discriminator/probability_{kind}")) for kind in ("real", "fake"))
    numbers.agrees(f"{mode}/loss_discriminator", 0.5 * discriminator_loss(*logits))
    numbers.agrees(f"{mode}/score", feature_error(z, again))
