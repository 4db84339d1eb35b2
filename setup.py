"""Which folders become which packages; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["hpcvol", "hpcvol.*"]),
        "hpcvol.examples",
        "hpcvol.jobscripts",
        "hpcvol.kernels",
        *(f"hpcvol.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"hpcvol.examples": "examples", "hpcvol.jobscripts": "jobscripts", "hpcvol.kernels": "kernels"},
    package_data={"hpcvol": ["py.typed"], "hpcvol.examples": ["*.toml"], "hpcvol.jobscripts": ["*.sbatch"]},
)
