"""Encoder, queues, painting, the decoder's memories, both decoders, discriminator, losses and score.

Left out: the code keeps one weight less than it says, so that its k is our k - 1, and its k = 1 gives
zeros. Its discriminator never judges with running statistics. Its hard shrinkage works on raw products
instead of weights that sum to 1. The student's losses in training mode with its memories depend on a mask
that was drawn and not kept. Retrieval is 1e-8 apart, since the code adds 1e-12 to differences of weights by
which it divides.
"""

from functools import partial

import pytest
import torch
from torch.nn.functional import mse_loss

from skanomaly import SQUID
from skanomaly.detectors.squid import SQUIDNetwork
from skanomaly.networks.inpainting import ImageDiscriminator, InPainting, PartMemory
from skanomaly.networks.memory import MemoryQueue, gumbel_shrinkage
from skanomaly.training import discriminator_loss, generator_loss


@pytest.fixture
def numbers(parity):
    return parity("squid")


def memory(n_locations, k, n_slots, size, learned=False, n_learned=6):
    """A memory whose k is the authors' k."""
    n_slots = n_learned if learned else n_slots
    shrink = partial(gumbel_shrinkage, k=k - 1)
    return MemoryQueue(n_locations, n_slots, size, shrink=shrink, learned=learned)


def put(numbers, module, prefixes, *parts, without=()):
    """Put the weights of a module whose names have these prefixes into parts of ours."""
    name = f"{module}/{prefixes}"
    keys = [key for key in numbers[f"order/{module}"] if key.startswith(prefixes)]
    keys = numbers[f"order/{name}"] = [key for key in keys if not key.endswith(without)]
    numbers.update({f"w/{name}/{key}": numbers[f"w/{module}/{key}"] for key in keys})
    numbers.put(name, *parts)


def put_items(numbers, module, prefix, memory):
    """Put the items of all places into a memory."""
    names = [key for key in numbers[f"order/{module}"] if key.startswith(prefix)]
    items = torch.stack([numbers.tensor(f"w/{module}/{name}") for name in names])
    memory.double().items.data.copy_(items)


def put_learned_items(numbers, module, prefix, block):
    """Put items, which run over rows, columns, channels, into a memory of parts: channels, rows, columns."""
    put_items(numbers, module, prefix, block.memory)
    channels, *sides = block.shape
    items = block.memory.items.data.unflatten(2, (*sides, channels))
    block.memory.items.data = items.permute(0, 1, 4, 2, 3).flatten(2)


def put_inpainting(numbers, module, prefix, inpainting):
    put(numbers, module, f"{prefix}bottleneck_conv1", inpainting.squeeze)
    put_items(numbers, module, f"{prefix}memory", inpainting.memory)
    put(numbers, module, f"{prefix}attention", inpainting.attention)
    put(numbers, module, f"{prefix}attn_norm", inpainting.norms)
    put(numbers, module, f"{prefix}ff", inpainting.feed_forward)
    put(numbers, module, f"{prefix}bottleneck_conv2", inpainting.widen)
    n_bits = inpainting.codes.shape[1]
    weight = inpainting.widen[0].weight.data
    weight[:, -n_bits:] = weight[:, -n_bits:].flip(1)  # the highest bit comes first there, last here
    inpainting.double()
    # log(5) anew: float32 has rounded it.
    inpainting.mask = inpainting.mask.exp().round().log()


def put_decoder(numbers, units, output, decoder):
    put(numbers, "generator", units, decoder.units)
    put(numbers, "generator", output, decoder.output)
    for unit in decoder.units[:2]:
        weight = unit.first[0].weight
        weight.data = weight.roll(-len(weight), 1)  # the skip's channels come first there, last here


@pytest.fixture
def network(numbers):
    net = SQUIDNetwork(
        (1, 128, 128),
        2,
        make_encoder=None,
        make_memory=partial(memory, 4, numbers.config["shrink_thres"], numbers.config["num_slots"]),
        padded=True,
        rho=1.0,
        width=numbers.config["features_root"],
        n_levels=None,
        skips=("concatenation", "concatenation"),
        stitch_level=2,
        n_memories=2,
    ).double()
    put(numbers, "generator", ("in_conv", "down_blocks"), net.encoder)
    put_decoder(numbers, "up_blocks", "out_conv", net.student)
    put_decoder(numbers, "teacher_ups", "teacher_out", net.teacher)
    put_inpainting(numbers, "generator", "inpaint_block.", net.inpainting)
    for level in range(2):
        put_learned_items(numbers, "generator", f"memory_blocks.{3 - level}", net.student.memories[level])
    return net.eval()


def inputs_of(module, call, *args):
    """First input of a module within a call."""
    seen = []
    with module.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        call(*args)
    return seen[0]


def compare_losses(numbers, name, network, x):
    """Reconstructions by both decoders, compared by their losses."""
    levels = network.encode(x)
    painted, _, _ = network.paint(levels)
    y, student = network.decode(network.student, painted)
    z, teacher = network.decode(network.teacher, levels)
    numbers.agrees(f"{name}student/loss", mse_loss(y, x))
    numbers.agrees(f"{name}teacher/loss", mse_loss(z, x))
    numbers.agrees(f"{name}distillation_loss", sum(mse_loss(s, t) for s, t in zip(student, teacher)))
    return y, z, student


@torch.no_grad()
def test_generator(numbers, network):
    x, block = numbers.input("images"), network.inpainting
    levels = network.encode(x)
    numbers.agrees("encoder/features", levels[-1])
    painted, vectors, retrieved = network.paint(levels)
    numbers.agrees("inpainting/vectors", vectors)
    numbers.agrees("inpainting/retrieved", retrieved, within=1e-8)
    numbers.agrees("inpainting/attention", block.attend(vectors, retrieved))
    h = inputs_of(block.feed_forward, block, levels[-1])
    numbers.agrees("inpainting/after_first_norm", h)
    numbers.agrees("inpainting/painted", painted[-1])
    before = inputs_of(network.student.memories[0], network, x)
    numbers.agrees("student/level_1_before_memory", before)
    y, z, student = compare_losses(numbers, "", network, x)
    numbers.agrees("student/level_1", student[0])
    numbers.agrees("student/reconstruction", y)
    numbers.agrees("teacher/reconstruction", z)
    levels = network.train().encode(x)
    z, _ = network.decode(network.teacher, levels)
    numbers.agrees("training_mode/teacher/loss", mse_loss(z, x))
    _, vectors, _ = network.paint(levels)
    block.memory.write(vectors)
    numbers.agrees("training_mode/queues_after_update", block.memory.items)


@torch.no_grad()
def test_generator_without_memories_in_the_decoder(numbers, network):
    network.student.memories = torch.nn.ModuleList([torch.nn.Identity()] * 4)
    x, name = numbers.input("images"), "without_decoder_memories/"
    y, *_ = compare_losses(numbers, name, network, x)
    numbers.agrees(f"{name}student/reconstruction", y)
    compare_losses(numbers, f"training_mode_{name}", network.train(), x)


@torch.no_grad()
def test_painting_of_nine_windows(numbers):
    inpainting = InPainting((32, 2, 2), (3, 3), make_memory=partial(memory, 9, 4, 7), padded=True)
    put_inpainting(numbers, "inpainting_9", "", inpainting)
    features = numbers.input("inpainting_9/features")
    numbers.agrees("inpainting_9/painted", inpainting.eval()(features)[0])
    numbers.agrees("inpainting_9/painted_in_training_mode", inpainting.train()(features)[0])


@torch.no_grad()
def test_learned_memory(numbers):
    make_memory = partial(memory, 4, 3, 6, learned=True)
    block = PartMemory((8, 4, 4), (2, 2), make_memory=make_memory, rho=1.0).double().eval()
    put_learned_items(numbers, "matrix_block", "", block)
    numbers.agrees("matrix_block/output", block(numbers.input("matrix_block/input")))


@pytest.mark.parametrize("k", [2, 3, 4, 6])
def test_retrieval(numbers, k):
    queue, query = memory(1, k, 6, 5).double(), numbers.input("queue/queries")
    queue.items.copy_(numbers.input("queue/slots"))
    numbers.agrees(f"queue/weights_k{k}", queue.weights(query[:, None])[0])
    if k == 3:
        numbers.agrees("queue/retrieved_k3", queue(query[:, None])[:, 0])
        products = (query @ queue.items[0].T).requires_grad_()
        weights = gumbel_shrinkage(products.softmax(1), k=2)
        weights.backward(numbers.input("queue/upstream_gradient"))
        numbers.agrees("queue/gradient_to_similarities_k3", products.grad)


def test_queue(numbers):
    queue = memory(1, 3, 6, 5).double()
    queue.items.copy_(numbers.input("queue/slots"))
    for i in range(4):
        queue.write(numbers.input(f"queue/written_{i}")[:, None])
        numbers.agrees(f"queue/slots_after_{i}", queue.items[0])


@torch.no_grad()
def test_discriminator(numbers):
    discriminator = ImageDiscriminator((1, 128, 128), width=16)
    running = "running_mean", "running_var", "num_batches_tracked"
    put(numbers, "discriminator", "", discriminator, without=running)
    x = numbers.input("images")
    numbers.agrees("discriminator/logit_train_mode_one_image", discriminator(x)[:, None])
    numbers.agrees("discriminator/logit_train_mode_batch_of_2", discriminator.train()(x)[:, None])


@torch.no_grad()
def test_losses_and_score(numbers, network):
    real, fake = (
        numbers.tensor(f"out/discriminator/logit_{of}eval_mode") for of in ("", "of_reconstructions_")
    )
    adversarial = generator_loss(fake)
    numbers.agrees("loss_discriminator", discriminator_loss(real, fake))
    numbers.agrees("loss_adversarial", adversarial)
    detector, names = SQUID(), ("student", "teacher")
    losses = {f"{name}_weight": numbers.tensor(f"out/{name}/loss") for name in names}
    losses["distillation_weight"] = numbers.tensor("out/distillation_loss")
    losses["adversarial_weight"] = adversarial
    total = sum(getattr(detector, name) * loss for name, loss in losses.items())
    numbers.agrees("loss_generator_total", total)
    logits = numbers.input("score/logits")
    network.discriminator = torch.nn.Identity()
    network.discriminator.forward = lambda y: logits
    network.mean, network.deviation = numbers.input("score/mean"), numbers.input("score/std")
    judgement = detector._judge(network, numbers.input("images").repeat(2, 1, 1, 1))
    numbers.agrees("score", judgement.components["probability"])
