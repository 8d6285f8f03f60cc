"""Bits of two commits: every detector is fitted in both trees, and each tree loads what the older one saved.

    python benchmarks/equal_bits.py OLD [NEW]

OLD and NEW are checkouts (`git worktree add ../before COMMIT`); NEW is this one by default. The same small
fits run in a process of each tree, on one torch thread. Everything they give is compared to the last bit:
scores, components, maps, reconstructions, thresholds, weights and history; also of the files of OLD, loaded
in NEW.
"""

import argparse
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]

#: Parameters that reach parts of a method that its defaults leave out.
VARIANTS = {
    "AdversarialAutoEncoder": [{"adversary": "image", "constrained": True}],
    "ALI": [{"stochastic": False, "discrimination": "cross_entropy"}],
    "AutoEncoder": [{"loss": "ssim"}, {"bottleneck": "spatial"}, {"validation_fraction": 0.2}],
    "DDAD": [
        {"unlabelled": True},
        {"unlabelled": True, "backbone": "memae", "validation_fraction": 0.2},
        {"refine": False, "backbone": "ae"},
    ],
    "CutPaste": [{"patches": "scar"}],
    "DRAEM": [{"synthesis": "perlin", "ssim_weight": 1.0}],
    "DeepSVDD": [{"objective": "soft_boundary"}],
    "FAnoGAN": [{"encoder_training": "ziz", "encoder_output": "linear"}, {"validation_fraction": 0.2}],
    "MemAE": [{"similarity": "dot", "shrinkage_threshold": 0.05}],
    "PatchDetector": [{"pooling": "top", "stride": 3, "patch_size": 8}],
    "ScoreEnsemble": [{"holdout": 0.0, "weights": [2.0, 1.0]}],
    "SQUID": [
        {"memory": "matrix", "shrinkage": "hard"},
        {"n_memories": 1, "skips": ("sum", "concatenation")},
    ],
    "SSLAnoVAE": [{"ssl_training": "pretrain", "fusion": "features"}, {"fusion": "sum"}],
    "SyntheticAnomalies": [
        *({"synthesis": name} for name in ("fpi", "pii", "nsa", "anat_paste", "shifted_pieces", "cutpaste")),
        {"network": "wide_residual", "unlabelled": True},
    ],
    "VAE": [{"score_component": "combination"}],
}

#: Components that have another name in the newer tree.
RENAMED = {"ALI": {"residual": "residual_sum"}, "AnoGAN": {"residual": "residual_sum"}}


def outputs(detector, X):
    """All that a fitted detector gives, as numpy."""
    found = {
        "scores": detector.score_samples(X),
        "components": {
            RENAMED.get(type(detector).__name__, {}).get(name, name): values
            for name, values in detector.score_components(X).items()
        },
        "thresholds": (detector.offset_, detector.pixel_offset_, detector.map_range_),
        "range": detector.intensity_range_,
    }
    if detector.pixel_offset_ == detector.pixel_offset_:  # nan of a method without maps
        found |= {"maps": detector.anomaly_map(X), "masks": detector.segment(X)}
    if hasattr(detector, "reconstruct"):
        found["reconstructions"] = detector.reconstruct(X)
    return found


def run(folder, load_from):
    """Fit, save and judge with the skanomaly of this process; `load_from` holds files of another."""
    import numpy as np
    import torch

    from skanomaly import persistence
    from skanomaly.testing import all_detectors, make_images, tiny

    torch.set_num_threads(1)
    grey, colour = make_images((40, 16, 16)), make_images((24, 3, 21, 18), "float32", seed=1)
    found = {}
    for name, cls in all_detectors():
        for k, options in enumerate([{}, *VARIANTS.get(name, [])]):
            y = np.repeat([1, 0], 20) if options.get("unlabelled") else None
            parameters = {key: value for key, value in options.items() if key != "unlabelled"}
            for kind, X, labels in (("grey", grey, y), ("colour", colour, None)):
                if kind == "colour" and options:
                    continue
                detector = tiny(cls, **parameters, channel_axis=1 if kind == "colour" else "auto").fit(
                    X, labels
                )
                key, file = f"{name} {k} {kind}", f"{name}-{k}-{kind}.skanomaly"
                judged = outputs(detector, X)
                found[key] = dict(judged)
                if hasattr(detector, "history_"):
                    found[key]["history"] = {
                        stage: [
                            {k: v for k, v in row.items() if k not in ("dur", "batches")} for row in history
                        ]
                        for stage, history in detector.history_.items()
                    }
                found[key]["weights"] = {n: v.numpy() for n, v in detector.network_.state_dict().items()}
                persistence.save(detector, folder / file)
                found[f"{key}, file"] = (
                    outputs(persistence.load(load_from / file), X) if load_from else judged
                )
                found[f"{key}, calibrated"] = outputs(detector.calibrate(X[:20]), X)
    (folder / "found.pickle").write_bytes(pickle.dumps(found))


def differences(a, b, path=""):
    """Paths at which two nested values are not equal to the bit."""
    import numpy as np

    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for i, (one, other) in enumerate(zip(a, b)):
            yield from differences(one, other, f"{path}/{i}")
    elif not np.array_equal(a, b, equal_nan=isinstance(a, (float, np.floating))):
        yield path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", default=HERE)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        return run(arguments.inside, arguments.files)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder) / "old", Path(folder) / "new"
        for tree, into, files in ((arguments.old, old, None), (arguments.new, new, old)):
            into.mkdir()
            command = [sys.executable, str(Path(__file__).resolve()), str(arguments.old)]
            command += ["--inside", str(into)] + (["--files", str(files)] if files else [])
            subprocess.run(command, check=True, cwd=tree, env={"PYTHONPATH": str(tree.resolve())})
            found[into.name] = pickle.loads((into / "found.pickle").read_bytes())
    changed = list(differences(found["old"], found["new"]))
    for path in changed:
        print("differs:", path)
    print(f"{len(found['old'])} sets of outputs, {len(changed)} differences")
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
