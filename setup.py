"""Build the Cython extensions; everything else about the package is in pyproject.toml.

Environment:
    GOPHER_DEBUG_CYTHON=1: bounds checks, initialised checks, line tracing and our own assertions.
    GOPHER_SANITIZE=address,undefined: build with these compiler sanitizers.

Elsewhere than on Linux the extensions that stand on epoll are left out: the library works without them, and the command
says what is missing.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("GOPHER_DEBUG_CYTHON", "") not in ("", "0")
SANITIZERS = os.environ.get("GOPHER_SANITIZE", "")

HOT = ("gopher._reassembly", "gopher.http.framing")
LINUX_ONLY = (
    "gopher._pump",
    "gopher.capture._ring",
    "gopher.capture.figures",
    "gopher.capture.mirror",
    "gopher.relay._tunnel",
    "gopher.relay.channel",
    "gopher.relay.downstream",
    "gopher.relay.preparing",
    "gopher.relay.turns",
    "gopher.relay.upstream",
    "gopher.upstreams.stream",
    "gopher.upstreams.tcp",
    "gopher.upstreams.upstream",
)

# The only table of directives: a "# cython:" line in a file would override it, and leave that file unchecked in the
# debug build. Not nonecheck: it breaks nogil methods.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
    # Python's annotations are for people and mypy, also in the modules that a .pxd makes typed: "int" is no C type.
    "annotation_typing": False,
    "linetrace": DEBUG,
}

# What is written as Python behaves as Python: modules that a .pxd makes typed check indices and count from the end.
PYTHON_DIRECTIVES = {**DIRECTIVES, "boundscheck": True, "wraparound": True, "cdivision": False}

# No -march=native: a wheel runs on other machines than the one that built it.
compile_args = ["-O2"]
link_args = []
if sys.platform == "linux":
    # Small: C needs no unwind tables to run, and a page of its own for each kind of section is a tenth of the file.
    compile_args += ["-fno-asynchronous-unwind-tables"]
    link_args += ["-Wl,-s", "-Wl,-z,noseparate-code"]
macros = [("CYTHON_TRACE", "1")] if DEBUG else [("CYTHON_WITHOUT_ASSERTIONS", "1")]
if SANITIZERS:
    sanitize = f"-fsanitize={SANITIZERS}"
    compile_args = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", sanitize]
    link_args = [sanitize]
elif DEBUG:
    compile_args = ["-O1", "-g"]
    link_args = []

# Cython modules, and Python modules that a .pxd beside them makes typed.
typed = [path.with_suffix(".py") for path in Path("gopher").glob("**/*.pxd")]
sources = {".".join(path.with_suffix("").parts): path for path in sorted(Path("gopher").glob("**/*.pyx"))}
sources.update({".".join(path.with_suffix("").parts): path for path in sorted(typed) if path.exists()})

# -O3 where every captured byte passes; elsewhere it is an eighth more code, and what takes the time is the system. The
# relay mostly calls Python's own functions: with -Os it is a third smaller, for a twentieth more instructions.
levels = {}
if not (SANITIZERS or DEBUG):
    levels = {name: ["-Os"] for name, path in sources.items() if path.suffix == ".py" and "gopher.relay." in name}
    levels |= {name: ["-O3"] for name in HOT}

extensions = [
    Extension(
        name,
        [str(path)],
        extra_compile_args=compile_args + levels.get(name, []),
        extra_link_args=link_args,
        define_macros=macros,
    )
    for name, path in sources.items()
    if sys.platform == "linux" or name not in LINUX_ONLY
]

# Cython and the C compiler go by the age of files alone, so a build with other settings starts from the beginning.
settings = repr((DIRECTIVES, PYTHON_DIRECTIVES, compile_args, levels, link_args, macros))
settings_file = Path("build/settings")
same_settings = settings_file.exists() and settings_file.read_text() == settings
modules = [
    module
    for suffix, directives in ((".pyx", DIRECTIVES), (".py", PYTHON_DIRECTIVES))
    for module in cythonize(
        [extension for extension in extensions if extension.sources[0].endswith(suffix)],
        compiler_directives=directives,
        build_dir="build/cython",
        force=not same_settings,
    )
]
settings_file.parent.mkdir(exist_ok=True)
settings_file.write_text(settings)

# The manual page and the completions, which packaging/host_files.py makes for the sdist; a checkout has none.
generated = Path("packaging/generated")
data_files = [
    (str(path.parent.relative_to(generated)), [str(path)]) for path in sorted(generated.glob("**/*")) if path.is_file()
]

setup(ext_modules=modules, data_files=data_files, options={"build_ext": {"parallel": os.cpu_count()}})
