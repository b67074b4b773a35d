"""Build the C extensions, if there is a compiler: without one NumPy does their work. All else is in pyproject.toml."""

import os
import sysconfig

from setuptools import Extension, setup

STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Python has no stable ABI as yet

setup(
    ext_modules=[
        Extension(
            f"litheseg.masks.{name}",
            [f"litheseg/masks/{name}.c"],
            depends=[f"litheseg/masks/{file}" for file in ("_buffers.h", "upsampling.c", "upsampling.h")],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if STABLE else [],
            # Products are not fused with sums, so that labels are the same bit by bit on every processor.
            extra_compile_args=[] if os.name == "nt" else ["-O3", "-ffp-contract=off"],
            py_limited_api=STABLE,
            optional=True,
        )
        for name in ("_resizing", "_upsampling")
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE else {},
)
