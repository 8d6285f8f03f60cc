"""Files whose bytes are changed or missing."""

from hypothesis import strategies as st

from skanomaly.io import ImageFiles


def check_spoilt(path, data):
    """A file with changed or missing bytes is read, or refused by name; there is no third way."""
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read = ImageFiles(path)[:]
    except ValueError as error:
        refused = str(error)
    else:
        assert read.ndim in (3, 4)
        return
    assert "cannot be read" in refused
