"""Detectors: each file holds one published method, as one public class."""
