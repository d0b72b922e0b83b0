"""What pyproject.toml cannot say: the compiled modules. An installation without a C compiler leaves them out."""

from setuptools import Extension, setup

# Sums of products are not fused: what LightGBM adds up is added up alike.
FLAGS = ["-O2", "-ffp-contract=off"]
COMPILED = {"runtime._passing": "runtime/_passing.c", "prediction._trees": "prediction/_trees.c"}

setup(ext_modules=[Extension(name, [source], extra_compile_args=FLAGS, optional=True) for name, source in COMPILED.items()])
