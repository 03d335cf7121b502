"""Members of zip archives; a damaged one costs one sentence."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pfljax.data.sources import files
from pfljax.errors import UserError


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of an archive's wanted members, in the order of their names.

    Args:
      path: the archive.
      wanted: whether to yield a member, by its name.

    Raises:
      UserError: the archive cannot be read, or is truncated, damaged or of a wrong checksum.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(filter(wanted, archive.namelist())):
                yield name, archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(
            f"{path} is a truncated or damaged zip file: {files.FETCH_AGAIN}."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file.") from error
