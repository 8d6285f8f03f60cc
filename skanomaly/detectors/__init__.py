"""One file, one published method, one public class."""
