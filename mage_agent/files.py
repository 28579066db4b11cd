"""Checks, before the work begins, that its results can be written."""

import tempfile
from pathlib import Path

__all__ = ["make_folder", "make_place"]


def make_folder(folder: Path) -> None:
    """Make a folder if it is not there, and make sure that files can be made in it.

    Raises:
        OSError: they cannot; the message names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write to {folder}: {error.strerror}") from error


def make_place(path: Path) -> None:
    """Make the folder of a file, and make sure that the file can be written there.

    Raises:
        OSError: it cannot; the message names the folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"cannot write to {path}: it is a folder; name a file.")
    make_folder(path.parent)
