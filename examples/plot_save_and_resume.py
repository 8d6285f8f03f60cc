"""
Save a detector, survive a crash
================================

A fit that was killed continues when it is called again. A fitted detector is saved to one file that holds no
code.
"""

import tempfile
from pathlib import Path

from skorch.callbacks import Callback

from skanomaly import AutoEncoder
from skanomaly.datasets import load_chest_xray
from skanomaly.persistence import load, save

X = load_chest_xray(subset="train").images[:, ::2, ::2]
folder = Path(tempfile.mkdtemp())


class PowerCut(Callback):
    """Callback that interrupts the fit in its fourth epoch, once."""

    happened = False

    def on_epoch_begin(self, net, **kwargs):
        print(f"epoch {len(net.history)}")
        if len(net.history) == 4 and not PowerCut.happened:
            PowerCut.happened = True
            raise KeyboardInterrupt


# %%
# With ``checkpoint_dir``, the state of the fit is saved after each epoch:

detector = AutoEncoder(
    hidden_size=256,
    max_epochs=6,
    checkpoint_dir=folder / "states",
    callbacks=[PowerCut()],
    random_state=0,
)
try:
    detector.fit(X)
except KeyboardInterrupt:
    print("the power is gone")

# %%
# The same call continues with epoch 4, and ends as if nothing had happened:

detector.fit(X)
whole = AutoEncoder(hidden_size=256, max_epochs=6, random_state=0).fit(X)
print((detector.score_samples(X) == whole.score_samples(X)).all())

# %%
# One file of JSON and tensors holds the detector, thresholds and history included:

save(detector, folder / "chest.skanomaly")
loaded = load(folder / "chest.skanomaly")
print(f"{(folder / 'chest.skanomaly').stat().st_size / 1e6:.1f} MB")
print(loaded)
print((loaded.score_samples(X) == detector.score_samples(X)).all())

# %%
# A damaged file is refused:

data = bytearray((folder / "chest.skanomaly").read_bytes())
data[-1000] ^= 1
(folder / "damaged.skanomaly").write_bytes(data)
try:
    load(folder / "damaged.skanomaly")
except ValueError as error:
    print(str(error).replace(str(folder), "..."))
