"""Retinas in OCT B-scans: their layers, found and compared, and lesions where these differ."""

# Nothing is imported here: `comparison` knows numpy only, and `segmentation`, far below, takes it.
