"""Installs the package ``mmnetaug`` and two small readers of annotation files, but nothing of torch or OpenMMLab.

Which build of torch, and which of OpenMMLab's two lines, is the user's choice: they must be there, and
``import mmnetaug`` says so where they are not. `requirements.txt` lists the environment that the tests run in.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="mmnetaug",
    version=re.search(r'__version__ = "(.+)"', (HERE / "mmnetaug" / "version.py").read_text()).group(1),
    description="NetAug (network augmentation) training of tiny detectors and classifiers for OpenMMLab",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["mmnetaug", "mmnetaug.*"]),
    # links to the configs and tools, from where OpenMMLab looks for them
    package_data={"mmnetaug": [".mim/*.yml", ".mim/*/**"]},
    entry_points={"console_scripts": ["mmnetaug = mmnetaug.__main__:main"]},
    python_requires=">=3.10",
    install_requires=["msgspec>=0.19", "defusedxml>=0.7.1", "filelock"],
    extras_require={
        "deploy": ["onnx>=1.23", "onnxscript>=0.7", "onnxruntime>=1.32"],  # tools/export.py
        "yolo": ["supervision==0.31.2"],  # reads YOLO labels
    },
)
