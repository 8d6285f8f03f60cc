"""Layers of the retina in OCT B-scans, and lesions, where layers of a scan and its reconstruction differ."""

# Nothing is imported here: `segmentation`, on the ground floor, imports `comparison`, which needs only numpy.
