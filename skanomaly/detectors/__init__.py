"""Detectors: each file holds one published method and its one public class."""
