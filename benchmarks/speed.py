"""Speed of training and scoring against raw torch loops, and memory of scoring.

    python benchmarks/speed.py [--pairs 15] [--memory] [--detectors NAME[:parameter=value,...] ...]
                               [--size 64] [--n-train 384] [--threads 2]
    python benchmarks/speed.py --search
    python benchmarks/speed.py --views
    python benchmarks/speed.py --synthesis
    python benchmarks/speed.py --members
    python benchmarks/speed.py --bank
    python benchmarks/speed.py --modes
    python benchmarks/speed.py --files [--pairs 3] [--images 10000] [--size 64]

Each detector is timed against a raw loop that does the same arithmetic, with the same network, from the
same uint8 array: written by hand where there is one here ("hand"), else the detector's own steps in a bare
loop ("bare"). Where nothing is trained, "fit" is the features of all images and what is learned of them. Runs
are interleaved; each side counts by its smallest time (wall, and process CPU time).
"noise" is the ratio of the raw loop to itself, measured in the same way: what a ratio of 1 looks
like on this machine. Ratios are raw time / package time, so 0.95 means 5 % slower than raw.
"""

import math
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from skanomaly import FeatureGaussian
from skanomaly._comparison import make, names, parse, with_epochs
from skanomaly._losses import gradient_penalty
from skanomaly.base import FeatureDetector
from skanomaly.datasets import load_chest_xray
from skanomaly.io import read_folder
from skanomaly.networks.autoencoder import LOG_VARIANCES
from skanomaly.networks.backbone import imagenet
from skanomaly.networks.bank import FeatureBank
from skanomaly.synthesis import SYNTHESES
from skanomaly.transforms import PRESETS, changed, preset

SCORING_ROWS = 32


def batches(X, batch_size, image_range=(-1.0, 1.0)):
    order = torch.randperm(len(X)).numpy()
    for index in np.array_split(order, math.ceil(len(X) / batch_size)):
        yield scaled(X[index], image_range)


def scaled(batch, image_range=(-1.0, 1.0)):
    low, high = image_range
    return torch.from_numpy(batch).float().mul_((high - low) / 255).add_(low)[:, None]


def raw_training(loss_of, detector, network, X, images):
    """One optimiser, one loss."""
    optimizer = torch.optim.Adam(network.parameters(), lr=detector.lr)
    network.train()
    for _ in range(detector.max_epochs):
        total = 0.0
        for x in batches(X, detector.batch_size):
            optimizer.zero_grad()
            loss = loss_of(detector, network, x)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)
        float(total)


def raw_autoencoder_loss(detector, network, x):
    return (network(x) - x).square().mean()


def raw_autoencoder_scores(detector, network, x):
    return (network(x) - x).square().mean((1, 2, 3))


def raw_vae_loss(detector, network, x):
    mean, log_variance = network.encoder(x).chunk(2, dim=1)
    log_variance = log_variance.clamp(*LOG_VARIANCES)
    z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return (network.decoder(z) - x).square().mean() + detector.kl_weight * divergence


def raw_vae_scores(detector, network, x):
    mean, _ = network.encoder(x).chunk(2, dim=1)
    return (network.decoder(mean) - x).square().mean((1, 2, 3))


def raw_aeu_loss(detector, network, x):
    mean, log_variance = network(x)
    return ((x - mean).square() * torch.exp(-log_variance) + log_variance).mean()


def raw_aeu_scores(detector, network, x):
    mean, log_variance = network(x)
    return ((x - mean).square() * torch.exp(-log_variance)).mean((1, 2, 3))


def raw_fanogan(detector, network, X, images):
    generator, critic, encoder = network.generator, network.critic, network.encoder
    options = {"lr": detector.lr, "betas": (0.0, 0.9)}
    critic_optimizer = torch.optim.Adam(critic.parameters(), **options)
    generator_optimizer = torch.optim.Adam(generator.parameters(), **options)
    critic_parameters, generator_parameters = list(critic.parameters()), list(generator.parameters())
    step = 0
    network.train()
    for _ in range(detector.max_epochs):
        total = 0.0
        for x in batches(X, detector.batch_size):
            with torch.no_grad():
                fake = generator(torch.randn(len(x), detector.latent_size))
            loss = critic(fake).mean() - critic(x).mean()
            loss = loss + detector.penalty_weight * gradient_penalty(critic, x, fake)
            critic_optimizer.zero_grad()
            loss.backward(inputs=critic_parameters)
            critic_optimizer.step()
            total += loss.detach() * len(x)
            step += 1
            if step % detector.n_critic == 0:
                loss = -critic(generator(torch.randn(len(x), detector.latent_size))).mean()
                generator_optimizer.zero_grad()
                loss.backward(inputs=generator_parameters)
                generator_optimizer.step()
        float(total)
    optimizer = torch.optim.RMSprop(encoder.parameters(), lr=detector.encoder_lr, alpha=0.9, eps=1e-10)
    for parameter in generator_parameters + critic_parameters:
        parameter.requires_grad_(False)
    generator.eval(), critic.eval()
    for _ in range(detector.encoder_epochs):
        total = 0.0
        for x in batches(X, detector.batch_size):
            y = generator(encoder(x))
            features = (critic.features(y) - critic.features(x)).square().mean()
            loss = (y - x).square().mean() + detector.feature_weight * features
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)
        float(total)
    for parameter in generator_parameters + critic_parameters:
        parameter.requires_grad_(True)


def raw_fanogan_scores(detector, network, x):
    y = network.generator(network.encoder(x))
    features = (network.critic.features(y) - network.critic.features(x)).square().mean(1)
    return (y - x).square().mean((1, 2, 3)) + detector.feature_weight * features


def raw_scores(judge, detector, network, X):
    network.eval()
    scores = np.empty(len(X))
    with torch.no_grad():
        for start in range(0, len(X), SCORING_ROWS):
            x = scaled(X[start : start + SCORING_ROWS], detector._image_range)
            scores[start : start + SCORING_ROWS] = judge(detector, network, x).numpy()
    return scores


def bare_training(detector, network, X, images):
    """The detector's own stages and steps, with nothing around them."""

    def run(stage, training, network, images, **options):
        own = {name: getattr(detector, name) for name in ("max_epochs", "lr", "batch_size")}
        loop = training(network, stage=stage, verbose=0, **own | options)
        loop.initialize()
        loop.move, loop.record = partial(bare_move, loop), lambda **values: None
        network.train()
        frozen = [p for part in loop._frozen() for p in part.eval().parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        rows = X if images.rows is None else X[images.rows]
        for _ in range(loop.max_epochs):
            for x in batches(rows, loop.batch_size, images.image_range):
                loop.n_steps += 1
                loop.step(network, x)
        for parameter in frozen:
            parameter.requires_grad_(True)

    detector._train(run, network, images)


def bare_move(loop, name, **loss):
    optimizer = getattr(loop, name + "_")
    optimizer.zero_grad(set_to_none=True)
    (value,) = loss.values()
    value.backward(inputs=[parameter for _, parameter in loop.moved_[name] if parameter.requires_grad])
    optimizer.step()


def bare_scores(detector, network, x):
    return detector._judge(network, x).score


def bare_fit(detector, X):
    """Features of all images by a plain loop, and the statistics of them."""
    network, described = detector._new_network().eval(), []
    with torch.no_grad():
        for start in range(0, len(X), SCORING_ROWS):
            x = scaled(X[start : start + SCORING_ROWS], detector._image_range)
            described.append((len(x), detector._features(network, x)))
        detector._learn_density(network, described)
        for _, tensors in described:
            detector._judge_features(network, *tensors)


BY_HAND = {
    "AutoEncoder": (partial(raw_training, raw_autoencoder_loss), raw_autoencoder_scores),
    "VAE": (partial(raw_training, raw_vae_loss), raw_vae_scores),
    "AEU": (partial(raw_training, raw_aeu_loss), raw_aeu_scores),
    "FAnoGAN": (raw_fanogan, raw_fanogan_scores),
}


def clocks():
    return np.array([time.perf_counter(), time.process_time()])


def clocked(function):
    """Wall and CPU seconds of a call."""
    start = clocks()
    function()
    return clocks() - start


def fit_clocked(detector, X, train=None):
    """Wall and CPU seconds of the training within a fit; train(network, images) replaces it."""
    own, seconds = detector._run_stages, []

    def timed(network, images, checkpoint):
        start = clocks()
        histories = train(network, images) if train else own(network, images, checkpoint)
        seconds.append(clocks() - start)
        # A history of one epoch: the raw loop keeps none, and a fit without one is refused.
        return histories or {"raw": [None]}

    detector._run_stages = timed
    detector.fit(X)
    del detector._run_stages
    return seconds[0]


def compare(package, raw, n_pairs):
    """Wall seconds of package, and its ratios to raw, of the smallest times; jobs run interleaved."""
    times = {}
    jobs = [("package", package), ("raw", raw), ("again", raw)]
    for _ in range(n_pairs):
        jobs = jobs[1:] + jobs[:1]  # no side always runs after the same other
        for name, job in jobs:
            times.setdefault(name, []).append(job())
    best = {name: np.min(values, axis=0) for name, values in times.items()}
    (wall, cpu), (wall_noise, cpu_noise) = (best["raw"] / best[name] for name in ("package", "again"))
    text = f"wall {wall:.3f} (noise {wall_noise:.3f}), CPU {cpu:.3f} (noise {cpu_noise:.3f})"
    return best["package"][0], text


def time_detector(name, n_pairs, size, n_train):
    detector = with_epochs(make(name), 1)
    # A multiple of the usual batch sizes: padding is the package's, and measured nowhere here.
    X = load_chest_xray(subset="train").images[:n_train]
    for axis in 1, 2:
        X = X.repeat(size // 64, axis)
    detector.fit(X)
    start = time.perf_counter()
    detector.score_samples(X[:SCORING_ROWS])
    n_batches = np.clip(round(1 / (time.perf_counter() - start)), 1, 48)  # about a second
    many = np.resize(X, (n_batches * SCORING_ROWS, *X.shape[1:]))
    network, kind = detector.network_, "hand" if name in BY_HAND else "bare"
    train, judge = BY_HAND.get(name, (bare_training, bare_scores))
    if isinstance(detector, FeatureDetector):
        fits = detector.fit, partial(bare_fit, detector)
        learning = {"fit": (*(partial(clocked, partial(f, X)) for f in fits), len(X))}
    else:
        learning = {
            "training": (
                lambda: fit_clocked(detector, X),
                lambda: fit_clocked(detector, X, lambda network, images: train(detector, network, X, images)),
                detector.n_iter_ * len(X),
            )
        }
    jobs = learning | {
        "scoring": (
            partial(clocked, lambda: detector.score_samples(many)),
            partial(clocked, lambda: raw_scores(judge, detector, network, many)),
            len(many),
        ),
    }
    for job, (package, raw, n_images) in jobs.items():
        package(), raw()
        seconds, ratios = compare(package, raw, n_pairs)
        rate = f"{n_images / seconds:8.4g} img/s"
        print(f"{name:12} {job:9} {rate}   ratio to raw ({kind}): {ratios}", flush=True)


def private_memory():
    """Anonymous resident memory in MB: mapped pages of a file do not count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def measure_memory(name, n_images):
    detector = with_epochs(make(name), 1)
    X = load_chest_xray(subset="train").images
    detector.fit(X[:64])
    with tempfile.TemporaryDirectory() as folder:
        file = np.lib.format.open_memmap(
            Path(folder) / "images.npy", mode="w+", dtype=np.uint8, shape=(n_images, *X.shape[1:])
        )
        for start in range(0, n_images, len(X)):
            file[start : start + len(X)] = X[: n_images - start]
        del file
        file = np.load(Path(folder) / "images.npy", mmap_mode="r")
        detector.score_samples(file[:64])
        before = peak = private_memory()
        start = time.perf_counter()
        for _ in detector.iter_batches(file):
            peak = max(peak, private_memory())
        scored = time.perf_counter() - start
        scores = detector.score_samples(file)
        peak = max(peak, private_memory())
    print(
        f"{name:12} {len(scores)} memmapped images: private memory grew by {peak - before:.0f} MB at most "
        f"({n_images / scored:.0f} img/s)",
        flush=True,
    )


def measure_files(n_pairs, n_images, size):
    """PNG files against an array decoded by hand, and memory that grows with the number of files."""
    X = load_chest_xray(subset="train").images.repeat(size // 64, axis=1).repeat(size // 64, axis=2)
    detector = FeatureGaussian(backbone="filters", random_state=0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n_images):
            # Rolled, so that no two files are equal.
            Image.fromarray(np.roll(X[i % len(X)], i // len(X), axis=0)).save(f"{folder}/{i:06}.png")
        paths = sorted(Path(folder).iterdir())

        def judge(read):
            images = read()
            return detector.fit(images).score_samples(images)

        def by_hand():
            return np.stack([np.asarray(Image.open(path)) for path in paths])

        if not np.array_equal(judge(partial(read_folder, folder)), judge(by_hand)):
            raise AssertionError("scores of files differ from those of the array")
        jobs = {
            "fit and score files": partial(judge, partial(read_folder, folder)),
            "fit and score, decoded by hand": partial(judge, by_hand),
            "decode by hand": by_hand,
            "read headers": partial(read_folder, folder),
        }
        times = {name: [] for name in jobs}
        for _ in range(n_pairs):
            for name, job in jobs.items():
                times[name].append(clocked(job))
        least = {name: np.min(values, axis=0) for name, values in times.items()}
        for name, (wall, cpu) in least.items():
            print(
                f"{name:32} {wall:6.1f} s wall, {cpu:6.1f} s CPU: {n_images} files of {size} x {size} pixels"
            )
        files, array, *_ = least.values()
        wall, cpu = files / array
        print(f"ratio of files to the array: {wall:.2f} wall, {cpu:.2f} CPU", flush=True)
        read, peaks = read_folder(folder), []
        for n in n_images // 10, n_images:
            peaks.append(private_memory())
            for _ in detector.iter_batches(read.take(slice(n))):
                peaks[-1] = max(peaks[-1], private_memory())
        print(
            f"private memory grows by {peaks[1] - peaks[0]:.0f} MB from {n_images // 10} files to {n_images}"
        )


def measure_search(n_pairs):
    """Seconds per image of AnoGAN's search, batched and alone, and of FAnoGAN's encoder beside it."""
    X = load_chest_xray(subset="train").images[:384]
    anogan = with_epochs(make("AnoGAN"), 2).fit(X)
    fanogan = with_epochs(make("FAnoGAN"), 1).fit(X)
    x, network = scaled(X[:SCORING_ROWS]), anogan.network_.eval()

    def alone():
        with torch.no_grad():
            for image in x[:4]:
                anogan._search(network, image[None])

    jobs = {
        "AnoGAN, 20 steps, 32 images at once": (lambda: anogan.score_samples(X[:SCORING_ROWS]), SCORING_ROWS),
        "AnoGAN, 20 steps, one by one": (alone, 4),
        "FAnoGAN": (lambda: fanogan.score_samples(X), len(X)),
        "FAnoGAN, iterative, 500 steps": (lambda: fanogan.iterative(X[:SCORING_ROWS]), SCORING_ROWS),
    }
    times = {name: [] for name in jobs}
    for _ in range(n_pairs):
        for name, (job, n_images) in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append((time.perf_counter() - start) / n_images)
    best = {name: min(values) for name, values in times.items()}
    for name, seconds in best.items():
        print(f"{name:38} {seconds:.5f} s per image")
    batched, single, encoder, iterative = best.values()
    print(f"a batched search is {single / batched:.1f} times as fast as one by one")
    print(f"FAnoGAN is {iterative / encoder:.0f} times as fast as its iterative search with 500 steps")
    print(f"FAnoGAN is {25 * batched / encoder:.0f} times as fast as AnoGAN with 500 steps")


def measure_views(n_pairs):
    """Share of SSLAnoVAE's training that is spent on drawing both views of the images, for each preset."""
    X = load_chest_xray(subset="train").images[:384]
    x = scaled(X[:64])
    for name in PRESETS:
        detector = make("SSLAnoVAE", transforms=name, max_epochs=1)
        views, steps = [], []
        for _ in range(n_pairs):
            start = time.perf_counter()
            for _ in range(6):
                [changed(view, x) for view in preset(name)]
            middle = time.perf_counter()
            detector.fit(X)
            views.append((middle - start) / 6)
            steps.append((time.perf_counter() - middle) / 6)
        print(
            f"SSLAnoVAE, transforms={name!r}: both views of 64 images {1000 * min(views):.1f} ms, "
            f"{min(views) / min(steps):.0%} of a step",
            flush=True,
        )


def measure_synthesis(n_pairs):
    """Share of a training step that is spent on making anomalies, for each synthesis."""
    X = load_chest_xray(subset="train").images[:96]
    for name in "SyntheticAnomalies:network=unet", "DRAEM":
        for kind, synthesis in SYNTHESES.items():
            made, whole = [], []

            def timed(*args, synthesis=synthesis, made=made):
                start = clocks()
                changed = synthesis(*args)
                made[-1] += clocks() - start
                return changed

            detector = make(name, synthesis=timed, max_epochs=1)
            for _ in range(n_pairs):
                made.append(np.zeros(2))
                whole.append(fit_clocked(detector, X))
            seconds = np.min(made, axis=0)
            wall, cpu = seconds / np.min(whole, axis=0)
            print(
                f"{name.partition(':')[0]:18} {kind:14} {len(X) / seconds[1]:7.0f} img/s (CPU), "
                f"{wall:.0%} of a step by wall time, {cpu:.0%} by CPU time",
                flush=True,
            )


def measure_members(n_pairs, *, n_members=6):
    """DDAD's ensemble of autoencoders beside as many single fits."""
    X = load_chest_xray(subset="train").images[:384]
    single = with_epochs(make("AutoEncoder", lr=5e-4), 1)
    ensemble = with_epochs(make("DDAD", backbone="ae", n_members=n_members, refine=False), 1)
    single.fit(X)
    fits = (lambda: ensemble.fit(X), lambda: [single.fit(X) for _ in range(n_members)])
    seconds, ratios = compare(*(partial(clocked, fit) for fit in fits), n_pairs)
    print(f"DDAD with {n_members} members {seconds:.2f} s; ratio to {n_members} fits of one: {ratios}")


def measure_bank(n_pairs, *, n_images=16, n_features=232, bank_size=2000):
    """PatchCore's search for the nearest feature beside a loop of torch.mm over chunks of the bank."""
    torch.manual_seed(0)
    bank = FeatureBank(bank_size, n_features)
    bank.features.copy_(torch.randn(bank_size, n_features))
    x = torch.randn(n_images * 14 * 14, n_features)

    def raw(chunk=500):
        nearest = torch.full((len(x),), torch.inf)
        for features in bank.features.split(chunk):
            squares = features.square().sum(1) - 2 * torch.mm(x, features.mT)
            nearest = torch.minimum(nearest, squares.amin(1))
        return (nearest + x.square().sum(1)).sqrt()

    seconds, ratios = compare(partial(clocked, lambda: bank.nearest(x, 1)), partial(clocked, raw), n_pairs)
    print(f"{len(x)} nearest of {bank_size} features {1000 * seconds:.1f} ms; ratio to torch.mm: {ratios}")


def measure_modes(n_pairs, *, size=224):
    """The network from ImageNet as it is, compiled, and in bfloat16, with the change of its last features."""
    network = imagenet("cpu")
    images = scaled(load_chest_xray(subset="train").images[:8], (0.0, 255.0))
    x = interpolate((images - 127) / 128, size=(size, size), mode="bilinear").expand(-1, 3, -1, -1)
    x = x.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(network, dynamic=False)

    def narrow():
        with torch.autocast("cpu", torch.bfloat16):
            return network(x)

    jobs = {"as it is": lambda: network(x), "torch.compile": lambda: compiled(x), "bfloat16": narrow}
    with torch.no_grad():
        found = {name: job()[-1].float() for name, job in jobs.items()}
        times = {name: [] for name in jobs}
        for _ in range(n_pairs):
            for name, job in jobs.items():
                times[name].append(clocked(job)[0])
    whole = found["as it is"]
    for name, values in times.items():
        change = (found[name] - whole).norm() / whole.norm()
        print(f"{name:14} {1000 * min(values) / len(x):.1f} ms per image, features change by {change:.1%}")


def main():
    flags = {
        "memory": "measure memory instead of speed",
        "search": "measure latent searches instead of speed",
        "views": "measure the views of SSLAnoVAE",
        "synthesis": "measure synthetic anomalies beside the training on them",
        "members": "measure DDAD's ensemble against single fits",
        "bank": "measure PatchCore's search against products of matrices",
        "files": "measure PNG files against an array",
        "modes": "measure the network from ImageNet compiled and in bfloat16",
    }
    own = {name: {"action": "store_true", "help": text} for name, text in flags.items()} | {
        "pairs": {"type": int, "default": 15},
        "detectors": {"nargs": "+", "default": names()},
        "size": {"type": int, "default": 64, "help": "a multiple of 64; pixels are repeated"},
        "n_train": {"type": int, "default": 384, "help": "images, a multiple of the batch size"},
        "images": {"type": int, "default": 100_000, "help": "for --memory and --files"},
    }
    options = parse(__doc__, __file__, "threads", **own)
    modes = measure_search, measure_views, measure_synthesis, measure_members, measure_bank, measure_modes
    for measure in modes:
        if getattr(options, measure.__name__.removeprefix("measure_")):
            return measure(options.pairs)
    if options.files:
        return measure_files(options.pairs, options.images, options.size)
    for name in options.detectors:
        if options.memory:
            measure_memory(name, options.images)
        else:
            time_detector(name, options.pairs, options.size, options.n_train)


if __name__ == "__main__":
    main()
