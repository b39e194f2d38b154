"""Build the Cython extensions; everything else about the package is in pyproject.toml.

Environment:
    GOPHER_DEBUG_CYTHON=1: bounds checks, initialised checks, line tracing and our own assertions.
    GOPHER_SANITIZE=address,undefined: build with these compiler sanitizers.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("GOPHER_DEBUG_CYTHON", "") not in ("", "0")
SANITIZERS = os.environ.get("GOPHER_SANITIZE", "")

# The only table of directives: a "# cython:" line in a file would override it, and leave that file unchecked in the
# debug build. Not nonecheck: it breaks nogil methods.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
    "linetrace": DEBUG,
}

# No -march=native: a wheel runs on other machines than the one that built it.
compile_args = ["-O3"]
link_args = ["-Wl,-s"] if sys.platform == "linux" else []
macros = [("CYTHON_TRACE", "1")] if DEBUG else [("CYTHON_WITHOUT_ASSERTIONS", "1")]
if SANITIZERS:
    sanitize = f"-fsanitize={SANITIZERS}"
    compile_args = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", sanitize]
    link_args = [sanitize]
elif DEBUG:
    compile_args = ["-O1", "-g"]
    link_args = []

extensions = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
    )
    for path in sorted(Path("gopher").glob("**/*.pyx"))
]

# Cython and the C compiler go by the age of files alone, so a build with other settings starts from the beginning.
settings = repr((DIRECTIVES, compile_args, link_args, macros))
settings_file = Path("build/settings")
same_settings = settings_file.exists() and settings_file.read_text() == settings
modules = cythonize(extensions, compiler_directives=DIRECTIVES, build_dir="build/cython", force=not same_settings)
settings_file.parent.mkdir(exist_ok=True)
settings_file.write_text(settings)

setup(ext_modules=modules)
