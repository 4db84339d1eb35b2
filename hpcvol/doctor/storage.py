"""Disks, and HDF5 on them."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hpcvol import environment
from hpcvol.doctor.asking import ask
from hpcvol.doctor.finding import Finding, note, ok, wrong

_TOPIC = "storage"
_GIB = 2**30
# MPI libraries make sockets below TMPDIR, whose names may have 108 characters.
_LONG_PATH = 60
_HDF5 = """
import h5py, os, sys
path = os.path.join(sys.argv[1], "probe.h5")
with h5py.File(path, "w", locking=False) as file: file["x"] = [1, 2, 3]
with h5py.File(path, "r", locking=False) as file: assert file["x"][2] == 3
print(h5py.__version__, h5py.version.hdf5_version)
"""


def check_storage() -> Iterator[Finding]:
    """Yield what there is to say of the folder for temporary files, of this one, and of HDF5."""
    temporary = Path(environment.variable("TMPDIR") or tempfile.gettempdir())
    yield temporary_folder(temporary)
    yield _here()
    yield _hdf5()


def temporary_folder(folder: Path) -> Finding:
    """Judge the folder for temporary files."""
    remedy = "export TMPDIR=/tmp, or another local folder that can be written"
    try:
        with tempfile.TemporaryDirectory(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return wrong(_TOPIC, "TMPDIR", f"{folder} cannot be written: {error.strerror}", remedy)
    found = f"{folder}, {free / _GIB:.1f} GiB free"
    if len(str(folder)) > _LONG_PATH:
        return note(
            _TOPIC, "TMPDIR", f"{found}: a long name, which MPI's sockets below it may not have room for", remedy
        )
    if free < _GIB // 4:
        return wrong(_TOPIC, "TMPDIR", f"{found}: MPI and Numba need some of it", remedy)
    return ok(_TOPIC, "TMPDIR", found)


def _here() -> Finding:
    here = Path.cwd()
    try:
        with tempfile.TemporaryDirectory(dir=here, prefix=".hpcvol-doctor-"):
            free = shutil.disk_usage(here).free
    except OSError as error:
        return note(
            _TOPIC, "this folder", f"{here} cannot be written: {error.strerror}", "give --run-dir another folder"
        )
    return ok(_TOPIC, "this folder", f"{here}, {free / _GIB:.1f} GiB free")


def _hdf5() -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        answer = ask([sys.executable, "-W", "ignore", "-c", _HDF5, folder], 9.0)
    if not answer.good:
        return wrong(
            _TOPIC, "HDF5", f"h5py cannot write a file: {answer.complaint}", "pip install --force-reinstall h5py"
        )
    h5py, hdf5 = answer.stdout.split()
    locking = environment.variable("HDF5_USE_FILE_LOCKING")
    said = f", HDF5_USE_FILE_LOCKING={locking}" if locking else ""
    return ok(_TOPIC, "HDF5", f"h5py {h5py}, HDF5 {hdf5}{said}; hpcvol opens files without locks")
