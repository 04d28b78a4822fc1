"""Which folder is which package; everything else about the project is in pyproject.toml.

`kernels/` and `models/` stand at the top level but are imported as `sama.kernels` and `sama.models`, so that
no other project's `kernels` is ever overwritten. The committed links in `sama/` serve a run from the checkout;
this mapping serves wheels, and checkouts whose file system has no links.
"""

from setuptools import setup

setup(
    packages=["sama", "sama.corpus", "sama.decode", "sama.kernels", "sama.models", "sama.report", "sama.training"],
    package_dir={"sama": "sama", "sama.kernels": "kernels", "sama.models": "models"},
    package_data={"sama": ["py.typed", "configs/*.yaml", "weights/*"], "sama.report": ["page/*"]},
)
