"""What pyproject.toml cannot say: the one compiled module. An installation without a C compiler leaves it out."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("runtime._passing", ["runtime/_passing.c"], extra_compile_args=["-O2"], optional=True)])
