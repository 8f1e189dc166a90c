"""`peftkit doctor`: what this machine can do, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer


@dataclass(frozen=True)
class Finding:
    """One fact about this machine.

    Args:
        problem: what to do about it, where something is wrong.
    """

    name: str
    value: str
    problem: str | None = None


def doctor() -> None:
    """Show what this machine can do, and what is in the way.

    Device, number types, libraries, network, disk; exit code 4 if something needs attention.
    """
    from peftkit.cli.output import print_pairs, warn
    from peftkit.errors import CapabilityError

    findings = [*_software(), *_device(), *_surroundings()]
    print_pairs((finding.name, finding.value) for finding in findings)
    typer.echo("\nlibraries")
    libraries = list(_libraries())
    print_pairs(((finding.name, finding.value) for finding in libraries), indent=2)
    problems = [finding.problem for finding in (*findings, *libraries) if finding.problem]
    typer.echo()
    for problem in problems:
        warn(problem)
    if problems:
        raise CapabilityError(f"{len(problems)} thing(s) above need attention")
    typer.echo("everything is in order")


def _software() -> Iterator[Finding]:
    import platform

    from peftkit import __version__
    from peftkit.recipe import KINDS

    yield Finding("peftkit", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}")
    plugins = [
        f"{kind} {name} ({package})"
        for kind, registry in KINDS.items()
        for name in registry.names()
        if (package := registry.plugin_package(name))
    ]
    yield Finding("plugins", ", ".join(plugins) or "none")


def _device() -> Iterator[Finding]:
    import platform
    import shutil

    try:
        import torch

        from peftkit.models import find_device
    # A torch whose shared libraries do not load is what a doctor is for.
    except (ImportError, OSError) as problem:
        yield Finding("device", "unknown", f"torch cannot be imported ({problem}); install it again")
        return
    device = find_device()
    if device == "cuda":
        yield from _gpus()
        return
    driver = None
    if device == "cpu" and shutil.which("nvidia-smi"):
        driver = "an NVIDIA driver is installed, but torch does not see a GPU; install a CUDA build of torch"
    facts = read_processor()
    name = facts.get("model name") or platform.processor() or platform.machine()
    yield Finding("device", f"{device}: {name}, {torch.get_num_threads()} threads", driver)
    if device == "cpu":
        native = computes_bfloat16(facts)
        told = {True: "bfloat16 in hardware", False: "bfloat16 emulated: slower than float32", None: "bfloat16 unknown"}
        yield Finding("number types", f"float32; {told[native]}; float16 for storage only")
    else:
        yield Finding("number types", "float32, float16")


def _gpus() -> Iterator[Finding]:
    import torch

    from peftkit.report.wording import size

    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        capability = f"compute capability {facts.major}.{facts.minor}"
        memory = size(facts.total_memory)
        yield Finding("device", f"cuda:{index}: {facts.name}, {memory}, {capability}, CUDA {torch.version.cuda}")
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    yield Finding(
        "number types", f"float32, float16, {'bfloat16' if bfloat16 else 'bfloat16 emulated: slower than float16'}"
    )


def read_processor(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The first processor that Linux lists; empty on systems without such a list."""
    if not path.is_file():
        return {}
    pairs = (line.partition(":") for line in path.read_text("utf-8").partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def computes_bfloat16(facts: Mapping[str, str]) -> bool | None:
    """Whether a processor multiplies bfloat16 itself (AVX512-BF16, AMX, Arm BF16); None where that cannot be told."""
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16")) if flags else None


def _surroundings() -> Iterator[Finding]:
    import shutil

    from peftkit.artifacts import cache_dir, hub_reachable
    from peftkit.report.wording import size

    cache = cache_dir()
    existing = next(folder for folder in [cache, *cache.absolute().parents] if folder.is_dir())
    for name, folder, shown in (("disk here", Path(), Path().resolve()), ("disk of cache", existing, cache)):
        free = shutil.disk_usage(folder).free
        problem = f"less than 1 GiB is free at {shown}; models and runs need more" if free < 2**30 else None
        yield Finding(name, f"{size(free)} free at {shown}", problem)
    hub = "reachable" if hub_reachable() else "not reachable: models come from local folders, the cache or mirrors"
    yield Finding("hub", hub)


def _libraries() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, requires

    try:
        needed = requires("peftkit") or ()
    except PackageNotFoundError:
        yield Finding("peftkit", "not installed", "peftkit runs from a folder; install it with  pip install -e .")
        return
    yield from compare_libraries(needed)


def compare_libraries(needed: Sequence[str]) -> Iterator[Finding]:
    """Versions of the libraries that requirements name; an extra that is one library counts as optional."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    for requirement in map(Requirement, needed):
        extra = str(requirement.marker).partition("extra == ")[2].strip("\"'") if requirement.marker else ""
        if extra not in ("", requirement.name):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            if extra:
                yield Finding(requirement.name, f"not installed; optional:  pip install 'peftkit[{extra}]'")
            else:
                repair = f"{requirement.name} is missing; install it with  pip install '{requirement}'"
                yield Finding(requirement.name, "missing", repair)
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        fits = requirement.specifier.contains(installed, prereleases=True)
        problem = None if fits else f"{requirement.name} {installed} does not fit; pip install '{wanted}'"
        yield Finding(requirement.name, installed, problem)
