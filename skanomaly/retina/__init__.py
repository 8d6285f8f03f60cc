"""Retinas in OCT B-scans: their layers, and lesions where layers of scan and reconstruction differ."""

# Nothing is imported here: `comparison` knows numpy only, and `segmentation`, far below, takes it.
