"""What a wheel holds: python packaging/check_wheels.py WHEEL... Exit status 1, and a line for each thing that is wrong.

Contents, sizes, the ABI of the extensions and the metadata. What an extension may ask of the system is auditwheel's
business, and the rest of the metadata twine's.
"""

from __future__ import annotations

import ast
import email
import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_EXTENSION_BYTES = 1_000_000
"""Of any extension."""
MAX_EXTENSIONS_BYTES = 4_000_000
"""Of all together."""
HOST_FILES = (
    "share/man/man1/gopher.1",
    "share/bash-completion/completions/gopher",
    "share/zsh/site-functions/_gopher",
    "share/fish/vendor_completions.d/gopher.fish",
)
"""What the wheel puts beside the package, below the environment."""
NAME = re.compile(r"gopher_mirror-(?P<version>[^-]+)-(?P<python>cp3\d+)-(?P<abi>cp3\d+)-(?P<platforms>[^-]+)\.whl")


def _assigned(path: Path, name: str) -> object:
    """The literal that a module assigns to a name, without running it."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == name:
            return ast.literal_eval(statement.value)
    raise LookupError(f"{path} assigns nothing to {name}")


def expected(*, linux: bool) -> tuple[set[str], set[str]]:
    """The files of the package, and the modules that are extensions."""
    linux_only = _assigned(ROOT / "setup.py", "LINUX_ONLY")
    assert isinstance(linux_only, tuple)
    sources = [path.relative_to(ROOT) for path in (ROOT / "gopher").glob("**/*") if "__pycache__" not in path.parts]
    files = {str(path) for path in sources if path.suffix in {".py", ".pyi"} or path.name == "py.typed"}
    typed = {path.with_suffix(".py") for path in sources if path.suffix == ".pxd"} & set(sources)
    compiled = {path for path in sources if path.suffix == ".pyx"} | typed
    modules = {".".join(path.with_suffix("").parts) for path in compiled}
    return files, modules if linux else modules - set(linux_only)


def problems(wheel: Path) -> list[str]:
    """What is wrong with a wheel, in words."""
    match = NAME.fullmatch(wheel.name)
    if match is None:
        return ["its name is not that of a gopher wheel"]
    found = []
    if match["python"] != match["abi"]:
        found.append(f"{match['python']} and {match['abi']} are two ABIs")
    linux = "linux" in match["platforms"]
    libc = "musl" if "musllinux" in match["platforms"] else "gnu"
    files, modules = expected(linux=linux)
    files |= {f"gopher_mirror-{match['version']}.data/data/{name}" for name in HOST_FILES}
    with zipfile.ZipFile(wheel) as archive:
        entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        dist_info = f"gopher_mirror-{match['version']}.dist-info/"
        extensions = {name for name in entries if name.endswith(".so")}
        others = {name for name in entries if not name.startswith(dist_info)} - extensions
        found += [f"{name} is missing" for name in sorted(files - others)]
        found += [f"{name} does not belong in it" for name in sorted(others - files)]

        suffix = re.compile(
            rf"\.cpython-{match['abi'][2:]}-" + (rf"\w+-linux-{libc}" if linux else "darwin") + r"\.so$"
        )
        built = {suffix.sub("", name).replace("/", ".") for name in extensions}
        found += [f"extension {name} is missing" for name in sorted(modules - built)]
        found += [f"extension {name} does not belong in it" for name in sorted(built - modules)]
        sizes = {name: entries[name].file_size for name in sorted(extensions)}
        found += [
            f"extension {name} has {size} bytes, more than {MAX_EXTENSION_BYTES}: is it stripped?"
            for name, size in sizes.items()
            if size > MAX_EXTENSION_BYTES
        ]
        if sum(sizes.values()) > MAX_EXTENSIONS_BYTES:
            found.append(f"its extensions have {sum(sizes.values())} bytes, more than {MAX_EXTENSIONS_BYTES} in all")

        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"):
            if dist_info + name not in entries:
                found.append(f"{name} is missing in {dist_info}")
        metadata = email.message_from_bytes(archive.read(dist_info + "METADATA"))
    version = _assigned(ROOT / "gopher/__init__.py", "__version__")
    if not metadata["Version"] == match["version"] == version:
        found.append(f"version {metadata['Version']}, but gopher is {version}")
    if metadata["Requires-Python"] != ">=3.10":
        found.append(f"Requires-Python is {metadata['Requires-Python']}")
    if metadata["License-Expression"] != "MIT":
        found.append(f"License-Expression is {metadata['License-Expression']}")
    return found


def main(arguments: list[str]) -> int:
    """Check each wheel; at least one."""
    if not arguments:
        print("usage: python packaging/check_wheels.py WHEEL...", file=sys.stderr)
        return 2
    wrong = 0
    for wheel in map(Path, arguments):
        found = problems(wheel)
        wrong += len(found)
        for problem in found:
            print(f"{wheel.name}: {problem}", file=sys.stderr)
        if not found:
            print(f"{wheel.name}: as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
