"""The U-Net that labels layers, and the losses of its discriminator.

The authors' second network, which makes images of the labels, is not in the package.
"""

import torch

from skanomaly.networks.unet import UNet
from skanomaly.training import generator_loss


def test_unet(parity):
    numbers = parity("pnet")
    network = UNet((1, 64, 64), 12, width=4)
    numbers.put("structure", network)
    skips = [block[0].out_channels for block in network.down[-2::-1]]
    for block, n_skip in zip(network.up, skips):
        # Their channels are the skip's first, ours those that come up.
        block[0].weight.data = block[0].weight.roll(-n_skip, 1)
    x = numbers.input("images")
    with torch.no_grad():
        numbers.agrees("structure/logits_of_the_first", network(x[:1]))
        numbers.agrees("structure/labels", network(x).argmax(1))


def test_losses(parity):
    numbers = parity("pnet")
    logits = torch.logit(numbers.input("adversarial/probabilities"))
    numbers.agrees("adversarial/nsgan/real", generator_loss(logits))
    numbers.agrees("adversarial/nsgan/fake", generator_loss(-logits))
