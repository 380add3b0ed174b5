"""pycls-heads: the distribution. The import name is ``pycls``; the public pycls has that name on the index."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "pycls/__init__.py").read_text(encoding="utf-8"))
assert VERSION is not None

EXPORT = ["onnx", "onnxscript", "onnxruntime"]
SLURM = ["submitit"]
TYPES = ["types-PyYAML", "types-simplejson", "types-tqdm"]
TEST = [*EXPORT, *SLURM, "pytest", "pytest-timeout", "pytest-xdist", "ruff", "mypy", *TYPES]

setup(
    name="pycls-heads",
    version=VERSION[1],
    description="Image classification for people who care about the head",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["pycls", "pycls.*"]),
    package_data={"pycls": ["py.typed", "data/sets/*.npz", "data/images/*.c", "heads/ops/*.[ch]",
                            "zoo/*.json"]},
    install_requires=[
        "torch>=2.9",
        "torchvision>=0.24",
        "numpy",
        "yacs",
        "pyyaml",
        "simplejson",
        "safetensors",
        "pillow",
        "matplotlib",
        "tensorboard",
        "tqdm",
    ],
    extras_require={"export": EXPORT, "slurm": SLURM, "timm": ["timm"], "test": TEST, "dev": [*TEST, "pre-commit"]},
    entry_points={"console_scripts": ["pycls=pycls.cli:console"]},
)
