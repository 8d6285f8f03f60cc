"""Files without code: what goes in comes out, and nothing else gets in."""

import copy
import inspect
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save as save_tensors
from sklearn.cluster import KMeans
from skorch.callbacks import EarlyStopping
from toys import LinearNetwork

from skanomaly import SQUID, AutoEncoder, DenoisingAutoEncoder, FAnoGAN, _storage
from skanomaly._losses import absolute_error
from skanomaly.base import Judgement, TrainedDetector
from skanomaly.persistence import load, save
from skanomaly.testing import make_images, tiny
from skanomaly.training import Reconstruction

X = make_images()


class Holder(TrainedDetector):
    """A detector outside skanomaly, with a factory of networks and other detectors as parameters."""

    def __init__(
        self,
        *,
        factory=None,
        detector=None,
        extras=(),
        max_epochs=1,
        batch_size=8,
        lr=1e-3,
        validation_fraction=0.0,
        checkpoint_dir=None,
        callbacks=None,
        device="auto",
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        verbose=0,
        random_state=None,
    ):
        for name in inspect.signature(Holder).parameters:
            setattr(self, name, locals()[name])

    def _build(self, image_shape):
        return (self.factory or LinearNetwork)(image_shape, 2)

    def _train(self, run, network, images):
        if self.detector is not None:
            self.detector_ = copy.deepcopy(self.detector).fit(images.X)
        run("reconstruction", Reconstruction, network, images, error=absolute_error)

    def _judge(self, network, x):
        maps = absolute_error(network(x), x)
        return Judgement(maps.mean((1, 2)), maps)


def other_network(image_shape, latent_size):
    return LinearNetwork(image_shape, latent_size + 1)


def test_a_file_of_an_older_skanomaly_comes_back():
    """MemAE as it was saved before formats and layouts were one thing."""
    loaded = load(Path(__file__).parent / "files" / "memae.skanomaly")
    assert (loaded.offset_, loaded.pixel_offset_) == (-0.1232657317072153, 0.6183059042692186)
    scores = [-0.09959915280342102, -0.10049094259738922, -0.11336416751146317]
    assert_allclose(loaded.score_samples(X[:3]), scores, rtol=1e-6)
    assert (loaded.image_shape_, loaded.intensity_range_, loaded.n_iter_) == ((1, 16, 16), (0, 255), 1)
    with pytest.raises(ValueError, match="uint8 intensities"):
        loaded.predict(X.astype(float))


def test_an_older_file_of_patches_comes_back():
    """PatchDetector as it was saved before it had a range of its own."""
    loaded = load(Path(__file__).parent / "files" / "patches.skanomaly")
    assert (loaded.offset_, loaded.pixel_offset_) == (-0.17447321861982346, 0.6555411380529402)
    scores = [-0.13494056463241577, -0.12228868901729584, -0.1603429615497589]
    assert_allclose(loaded.score_samples(X[:3]), scores, rtol=1e-6)
    assert (loaded.image_shape_, loaded.intensity_range_) == ((1, 16, 16), (0, 255))


def test_a_file_of_another_version_is_refused_by_name(tmp_path, monkeypatch):
    save(tiny(AutoEncoder).fit(X), tmp_path / "a")
    monkeypatch.setattr(AutoEncoder, "_file_version", 2)
    with pytest.raises(ValueError, match=r"skanomaly.AutoEncoder of file version 1, .* of version 2; fit"):
        load(tmp_path / "a")
    save(tiny(AutoEncoder).fit(X), tmp_path / "a")
    assert isinstance(load(tmp_path / "a"), AutoEncoder)


@pytest.mark.parametrize("cls", [DenoisingAutoEncoder, SQUID])
def test_files_of_a_network_that_was_changed_are_refused(cls, tmp_path, monkeypatch):
    """Their weights fit the shapes of the network of today, but not what it computes."""
    with monkeypatch.context() as before:
        before.setattr(cls, "_file_version", 1)
        save(tiny(cls).fit(X), tmp_path / "a")
    with pytest.raises(ValueError, match=f"{cls.__name__} of file version 1, .* of version 2; fit"):
        load(tmp_path / "a")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A saved detector."""
    path = tmp_path_factory.mktemp("saved") / "detector.skanomaly"
    save(tiny(FAnoGAN).fit(X), path)
    return path


def test_parameters_come_back_as_they_were(tmp_path):
    parameters = {
        "latent_size": np.int64(3),
        "lr": np.float32(0.01),
        "intensity_range": (np.uint8(0), 255.0),
        "image_shape": [16, 16],
        "validation_fraction": 0.25,
        "n_levels": None,
    }
    detector = AutoEncoder(**parameters)
    save(detector, tmp_path / "a")
    loaded = load(tmp_path / "a")
    for name, value in detector.get_params().items():
        assert getattr(loaded, name) == value
        assert type(getattr(loaded, name)) is type(value)
    assert type(loaded.intensity_range[0]) is np.uint8


def test_what_is_about_the_process_is_not_saved(tmp_path):
    detector = tiny(
        AutoEncoder,
        callbacks=[EarlyStopping("train_loss")],
        verbose=1,
        device="cpu",
        checkpoint_dir=tmp_path / "states",
        random_state=np.random.RandomState(0),
    ).fit(X)
    save(detector, tmp_path / "a")
    loaded = load(tmp_path / "a")
    for name in "callbacks", "verbose", "device", "checkpoint_dir", "random_state":
        assert getattr(loaded, name) == getattr(AutoEncoder(), name)
    given = load(tmp_path / "a", device="cpu", verbose=2, random_state=5)
    assert (given.device, given.verbose, given.random_state) == ("cpu", 2, 5)
    with pytest.raises(TypeError, match="parameter width is in the file"):
        load(tmp_path / "a", width=3)
    with pytest.raises(TypeError, match=r"AutoEncoder has no parameters \['colour'\]"):
        load(tmp_path / "a", colour=3)
    with pytest.raises(ValueError, match="device='cuda:9' was asked for"):
        load(tmp_path / "a", device="cuda:9")


def test_other_objects_are_left_out_and_given_again(tmp_path):
    detector = Holder(factory=other_network, random_state=0).fit(X)
    with pytest.raises(TypeError, match=r"parameter factory is of type function, .*leave_out=\['factory'\]"):
        save(detector, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"leave_out names parameters that Holder has not: \['facory'\]"):
        save(detector, tmp_path / "a", leave_out=["facory"])
    save(detector, tmp_path / "a", leave_out=["factory"])
    with pytest.raises(TypeError, match="parameter factory was left out of the file"):
        load(tmp_path / "a", types=[Holder])
    with pytest.raises(ValueError, match=r"not the one its parameters describe: .* is \(\(256, 3\)"):
        load(tmp_path / "a", types=[Holder], factory=LinearNetwork)
    loaded = load(tmp_path / "a", types=[Holder], factory=other_network)
    assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


def test_nested_detectors(tmp_path):
    inner = tiny(AutoEncoder, loss="l1")
    outer = Holder(detector=Holder(detector=inner, factory=other_network), extras=(tiny(FAnoGAN), 3))
    save(outer.fit(X), tmp_path / "a", leave_out=["detector__factory"])
    with pytest.raises(ValueError, match=r"holds a Holder, which is not in this skanomaly; .*types=\[...\]"):
        load(tmp_path / "a")
    with pytest.raises(TypeError, match="parameter detector__factory was left out"):
        load(tmp_path / "a", types=[Holder])
    given = {"detector__factory": other_network, "detector__detector__verbose": 1}
    loaded = load(tmp_path / "a", types=[Holder], **given)
    assert loaded.detector.factory is other_network
    assert loaded.detector.detector.verbose == 1
    assert repr(loaded.extras) == repr(outer.extras)
    assert_array_equal(loaded.score_samples(X), outer.score_samples(X))


def test_fitted_detectors_inside_one(tmp_path):
    outer = Holder(detector=tiny(AutoEncoder)).fit(X)
    save(outer, tmp_path / "a")
    loaded = load(tmp_path / "a", types=[Holder])
    assert_array_equal(loaded.detector_.score_samples(X), outer.detector_.score_samples(X))


def test_detectors_in_lists(tmp_path):
    outer = Holder(detector=tiny(AutoEncoder)).fit(X)
    outer.members_ = [outer.detector_, tiny(FAnoGAN).fit(X)]
    save(outer, tmp_path / "a")
    for member, before in zip(load(tmp_path / "a", types=[Holder]).members_, outer.members_):
        assert_array_equal(member.score_samples(X), before.score_samples(X))
    outer = Holder(extras=(Holder(factory=other_network), 3)).fit(X)
    with pytest.raises(TypeError, match="parameter extras__factory is of type function"):
        save(outer, tmp_path / "a")
    save(outer, tmp_path / "a", leave_out="extras")
    assert load(tmp_path / "a", types=[Holder], extras=()).extras == ()
    with pytest.raises(TypeError, match="types must be a list of detector classes, got <class"):
        load(tmp_path / "a", types=Holder)


def test_a_network_that_cannot_be_checked_without_memory(tmp_path):
    def build(image_shape, latent_size):
        assert torch.linspace(0, 1, 3).tolist()
        return LinearNetwork(image_shape, latent_size)

    detector = Holder(factory=build).fit(X)
    with pytest.raises(ValueError, match="Holder._build cannot run on torch's meta device"):
        save(detector, tmp_path / "a", leave_out=["factory"])


def test_many_threads_load_and_fit_at_once(path):
    """The parameters of one network are not counted as those of another."""
    done = []

    def work():
        for _ in range(5):
            done.append(load(path).offset_)
            torch.nn.Linear(3, 3, device="meta")  # draws nothing from the generator of the fits
        done.append(tiny(AutoEncoder).fit(X).offset_)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(done) == 24
    assert len(set(done)) == 2


def test_a_file_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(_storage, "HEADER_LIMIT", 2000)
    with pytest.raises(ValueError, match="may take 2000; is there a history of every batch"):
        save(tiny(AutoEncoder).fit(X), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_saving_over_a_file_keeps_its_mode(tmp_path):
    (tmp_path / "real").touch()
    os.chmod(tmp_path / "real", 0o600)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(tiny(AutoEncoder), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600
    assert repr(load(tmp_path / "link")) == repr(tiny(AutoEncoder))


def test_scikit_learn_estimators_are_for_joblib(tmp_path):
    fitted = tiny(AutoEncoder).fit(X)
    fitted.scaler_ = KMeans()
    with pytest.raises(TypeError, match="attribute scaler_ must be .* got KMeans; .*joblib.dump"):
        save(fitted, tmp_path / "a")
    with pytest.raises(TypeError, match="detector must be .* got KMeans; .*joblib.dump"):
        save(KMeans(), tmp_path / "a")
    with pytest.raises(TypeError, match="parameter detector must be .* got KMeans; .*joblib.dump"):
        save(Holder(detector=KMeans()), tmp_path / "a")
    with pytest.raises(TypeError, match="detector must be .* got str$"):
        save("detector", tmp_path / "a")


def test_parameters_changed_after_the_fit(tmp_path):
    detector = tiny(AutoEncoder).fit(X).set_params(latent_size=5)
    with pytest.raises(ValueError, match="no longer describe its network .*set them back, or fit again"):
        save(detector, tmp_path / "a")


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    detector = tiny(AutoEncoder)
    save(detector, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(detector.fit(X), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before


LOAD = """
import sys, torch
torch.set_num_threads(2)
from skanomaly.persistence import load
from skanomaly.testing import make_images
detector = load(sys.argv[1])
state = {key: value.numpy().tobytes().hex() for key, value in detector.network_.state_dict().items()}
torch.set_num_threads(1)
print(repr((state, detector.score_samples(make_images()).tolist(), detector.offset_)))
"""


def test_another_process_with_another_thread_count(path):
    done = subprocess.run([sys.executable, "-c", LOAD, path], capture_output=True, check=True, text=True)
    state, scores, offset = eval(done.stdout)
    detector = load(path)
    assert state == {k: v.numpy().tobytes().hex() for k, v in detector.network_.state_dict().items()}
    assert scores == detector.score_samples(X).tolist()
    assert offset == detector.offset_


def test_a_pickle_from_a_machine_with_an_accelerator():
    detector = tiny(AutoEncoder).fit(X)
    scores = detector.score_samples(X)
    for device in "auto", "cuda":
        # As fitted there: the network is brought to the CPU when it is pickled, and stays here.
        elsewhere = copy.copy(detector).set_params(device=device)
        elsewhere.device_, network = "cuda", elsewhere.network_
        here = pickle.loads(pickle.dumps(elsewhere))
        assert here.device_ == "cpu"
        assert elsewhere.network_ is network, "the one that was pickled stays where it is"
        assert_array_equal(here.score_samples(X), scores)


def test_files_of_other_kinds(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="not a file written by skanomaly"):
        load(tmp_path)
    tiny(AutoEncoder, checkpoint_dir=tmp_path).fit(X)
    with pytest.raises(ValueError, match="holds a checkpoint, not a detector"):
        load(tmp_path / "reconstruction.safetensors")
    document, tensors = _storage._read(path)
    (tmp_path / "later").write_bytes(
        save_tensors(tensors, {"skanomaly": json.dumps(document | {"format": 2, "version": "3.0"})})
    )
    with pytest.raises(ValueError, match=r"format 2, written by skanomaly 3.0; this is .* format 1"):
        load(tmp_path / "later")


# Damage. What is forged carries the right SHA-256: then only what the contents say can give it away.


def forged(path, change):
    document, tensors = _storage._read(path)
    del document["sha256"]
    document = change(document, tensors) or document
    document["sha256"] = _storage._digest(document, tensors)
    return save_tensors({k: v.contiguous() for k, v in tensors.items()}, {"skanomaly": json.dumps(document)})


def parts_of(document):
    return document["content"]["dict"]


def places(value, found=None):
    """Every (container, key) in a JSON value."""
    found = [] if found is None else found
    for key in value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0):
        if key != "history_":  # free in form
            found.append((value, key))
            places(value[key], found)
    return found


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
WRONG = [
    ("offset_", float("nan")),
    ("offset_", {"scalar": ["float64", [1, 2]]}),
    ("intensity_range_", {"tuple": [5.0, 1.0]}),
    ("map_range_", {"tuple": [5.0]}),
    ("n_iter_", -1),
    ("_kind", "nonsense"),
    ("history_", {"dict": {"gan": ["abc", 3]}}),
    ("history_", {"dict": {"gan": 3}}),
    ("_layout", {"layout": {"tuple": [{"tuple": [1, 16, 16]}, "hello", False]}}),
    ("_layout", {"layout": {"tuple": [{"tuple": [1, 8, 16]}, None, False]}}),
    ("image_shape_", {"tuple": [1, 16, -16]}),
]
SIZES = "hidden_size", "latent_size", "width", "n_levels"
HUGE = st.sampled_from([10**5, 10**9, 10**12, 10**20])


@st.composite
def damages(draw, path):
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    kind = draw(
        st.sampled_from(
            "truncated flipped header inserted swapped shapes foreign_json foreign_part huge huge_images "
            "huge_tensor names attribute value class pickle deep noise".split()
        )
    )
    note(kind)
    if kind == "truncated":
        return data[: draw(st.integers(0, len(data) - 1))]
    if kind in ("flipped", "header"):
        bit = draw(st.integers(0, 8 * (len(data) if kind == "flipped" else header + 8) - 1))
        data = bytearray(data)
        data[bit // 8] ^= 1 << bit % 8
        return bytes(data)
    if kind == "inserted":
        at = draw(st.integers(0, len(data)))
        return data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]
    if kind == "swapped":  # the bytes of two tensors, as a broken disk would
        _, tensors = _storage._read(path)
        a, b = draw(st.permutations(sorted(k for k, v in tensors.items() if v.numel() > 1)))[:2]
        assume(not torch.equal(tensors[a], tensors[b]))
        swapped = tensors | {a: tensors[b], b: tensors[a]}
        document, _ = _storage._read(path)
        return save_tensors(swapped, {"skanomaly": json.dumps(document)})
    if kind == "noise":
        return draw(st.binary(max_size=200))
    if kind == "pickle":
        return draw(st.sampled_from([b"", (10).to_bytes(8, "little")])) + pickle.dumps(
            Payload(str(path.parent / "executed"))
        )
    if kind == "deep":
        depth = draw(st.sampled_from([10**4, 10**6]))
        return save_tensors({}, {"skanomaly": '{"format": 1, "content": ' + "[" * depth + "]" * depth + "}"})

    def change(document, tensors):
        parts = parts_of(document)
        fitted, parameters = parts["fitted"]["dict"], parts["parameters"]["dict"]
        if kind == "shapes":
            key = draw(st.sampled_from(sorted(tensors)))
            how = draw(st.sampled_from(["shape", "dtype", "nan", "gone"]))
            if how == "gone":
                del tensors[key]
            elif how == "nan":
                assume(tensors[key].is_floating_point())
                tensors[key].view(-1)[-1] = torch.nan
            else:
                tensors[key] = (
                    tensors[key].double() if how == "dtype" else tensors[key].new_zeros(3, 3, 3, 3, 3)
                )
        elif kind == "foreign_json":
            return {"format": 1, "kind": "detector", "content": draw(JSON)}
        elif kind == "foreign_part":
            container, name = draw(st.sampled_from(places(parts)[:60]))
            container[name] = {"no such tag": draw(JSON)}
        elif kind == "huge":
            parameters[draw(st.sampled_from(SIZES))] = draw(HUGE)
        elif kind == "huge_images":
            fitted["image_shape_"] = {"tuple": draw(st.permutations([1, draw(HUGE), draw(HUGE)]))}
        elif kind == "huge_tensor":
            pass
        elif kind == "names":
            tensors[draw(st.sampled_from(["../../etc/passwd", "/etc/passwd", "", "network/../x"]))] = (
                torch.ones(2)
            )
        elif kind == "attribute":
            name = draw(st.sampled_from(["score_samples", "__class__", "_checkpoint", "a b_", "_layout"]))
            fitted[name] = draw(JSON.filter(lambda value: not isinstance(value, (dict, list))))
        elif kind == "value":
            name, value = draw(st.sampled_from(WRONG))
            fitted[name] = value
        elif kind == "class":
            parts["class"] = draw(
                st.sampled_from(
                    ["os.system", "skanomaly.BaseDetector", "skanomaly.testing", "KMeans", 3, None, []]
                )
            )

    data = forged(path, change)
    if kind == "huge_tensor":
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        key = draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
        header[key]["shape"] = draw(
            st.lists(st.sampled_from([1, 10**6, 10**12, 2**62]), min_size=1, max_size=4)
        )
        header[key]["data_offsets"][1] += draw(st.sampled_from([0, 10**12]))
        text = json.dumps(header).encode()
        data = draw(st.sampled_from([len(text), 2**40])).to_bytes(8, "little") + text
    return data


@pytest.fixture
def little_memory():
    """Half a gigabyte more than now, and no more."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited by Linux's /proc")
@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_file_is_refused(path, little_memory, data):
    damaged = data.draw(damages(path))
    file = path.with_name("damaged")
    file.write_bytes(damaged)
    if damaged == path.read_bytes():
        return
    with pytest.raises(ValueError, match=r"\w{3,}") as refused:
        load(file)
    assert "alloc" not in str(refused.value), "it tried to take the memory"
    assert not path.with_name("executed").exists()
