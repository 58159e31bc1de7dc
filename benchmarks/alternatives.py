"""What the suite compares with, made on demand: Python environments of their own, a program built by Maven.

Nothing of it is a dependency of the project. It is kept under ``.bench/`` and ``make clean`` removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
KEPT = HERE.parent / ".bench"
JAVA_SOURCE = HERE / "kafka_streams"
INSTALL_TIMEOUT_S = 900.0

QUIX = ("quixstreams==3.28.1", f"numpy=={version('numpy')}")


class UnavailableError(Exception):
    """A part, or one that it compares with, cannot be had on this machine; the text says why."""


@contextlib.contextmanager
def skipping(skipped: dict[str, str], name: str) -> Iterator[None]:
    """What is unavailable is named, with its reason, and left out."""
    try:
        yield
    except UnavailableError as error:
        skipped[name] = str(error)
        say(f"SKIPPED {name}: {error}")


def sentence_transformers() -> tuple[str, ...]:
    """Requirements of the encoder's alternative: the same torch and transformers as ours."""
    return (
        "sentence-transformers>=5,<6",
        *(f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers")),
    )


def python_with(name: str, requirements: tuple[str, ...]) -> Path:
    """The interpreter of an environment that has the requirements and nothing of ours.

    Raises UnavailableError with the end of what the installer said.
    """
    directory = KEPT / name
    python, stamp = directory / "bin" / "python", directory / "requirements"
    wanted = "\n".join((sys.version, *requirements))
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    uv = (sys.executable, "-m", "uv")
    say(f"making an environment with {', '.join(requirements)} …")
    _run((*uv, "venv", "--clear", "--python", sys.executable, str(directory)))
    _run((*uv, "pip", "install", "--python", str(python), *requirements))
    stamp.write_text(wanted)
    return python


def installed(python: Path, package: str) -> str:
    """A package's version in another environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return _run((str(python), "-c", code)).strip()


def java() -> str:
    """The machine's Java. Raises UnavailableError."""
    found = shutil.which("java")
    if found is None or shutil.which("javac") is None:
        raise UnavailableError("no JDK: `java` and `javac` (17 or newer) are not in the path")
    return found


def java_version() -> str:
    """What ``java -version`` calls itself."""
    done = subprocess.run(  # noqa: S603  # our own command
        [java(), "-version"], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stderr.splitlines()[0]


def kafka_streams() -> str:
    """The class path of the Kafka Streams program, built now. Raises UnavailableError."""
    java()
    maven = shutil.which("mvn")
    if maven is None:
        raise UnavailableError("no Maven: `mvn` is not in the path")
    target = KEPT / "kafka-streams"
    _run((maven, "-q", "-B", "-f", str(JAVA_SOURCE / "pom.xml"), f"-Doutput={target}", "package"))
    return os.pathsep.join((str(target / "benchmark.jar"), str(target / "libraries" / "*")))


def kafka_streams_version() -> str:
    """The version of Kafka Streams that is compared with, as its library's name has it."""
    jar = next((KEPT / "kafka-streams" / "libraries").glob("kafka-streams-*.jar"))
    return jar.stem.removeprefix("kafka-streams-")


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _run(command: tuple[str, ...]) -> str:
    """Output of a command. Raises UnavailableError with the end of what it said when it fails."""
    try:
        done = subprocess.run(  # noqa: S603  # our own command
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{Path(command[0]).name} failed: {error}") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-5:]
        raise UnavailableError(f"{' '.join(command[:4])} … failed:\n  " + "\n  ".join(said))
    return done.stdout
