"""Push and pull: over directories, memory and an S3 server, damaged on the way, cut short, refused, beside `gc`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from earec_core.cli import run
from earec_core.remote import FileSystemRemote, open_remote, pull, push
from earec_registry import DamagedError, InvalidError, LayoutError, Registry, RegistryError, fetch, send

SECRET = "do-not-show"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    S3FileSystem.clear_instance_cache()
    yield "http://{}:{}".format(*moto.get_host_and_port())
    moto.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """A new bucket that keeps every version of its objects; what boto3 says of it is the truth."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    made = boto3.resource("s3").create_bucket(Bucket=f"bucket-{abs(hash(request.node.name))}")
    made.Versioning().enable()
    return made


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry")


@pytest.fixture
def model(tmp_path: Path, registry: Registry) -> str:
    """A composite of two adapters; one file is in all three."""
    for name in ("shared", "one", "two", "own"):
        (tmp_path / name).write_bytes(name.encode() * 5000)
    shared = {"shared.bin": tmp_path / "shared"}
    parents = [
        registry.add({"kind": "adapter", "of": n}, {**shared, "w.bin": tmp_path / n}, name=f"parts/{n}")
        for n in ("one", "two")
    ]
    said = {"kind": "composite", "parents": [{"id": id_, "weight": 0.5} for id_ in parents]}
    return registry.add(said, {**shared, "sub/own.bin": tmp_path / "own"}, name="composite/m")


@pytest.fixture(params=["directory", "file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('bucket').name}/models"
    at = f"{tmp_path}/far/models"
    return {"directory": at, "file": f"file://{at}", "memory": f"memory:/{at}"}[request.param]


def downloaded(bucket: Any, prefix: str, folder: Path) -> Registry:
    """The registry that a plain copy of the objects is."""
    for one in bucket.objects.filter(Prefix=f"{prefix}/"):
        target = folder / one.key.removeprefix(f"{prefix}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(one.get()["Body"].read())
    return Registry.open(folder, create=False)


def objects(registry: Registry) -> set[str]:
    return {str(p.relative_to(registry.root)) for p in registry.root.glob("*/sha256/*")}


def test_a_model_goes_there_and_back_with_its_parents_once(registry, model, url, tmp_path) -> None:
    sent = push(registry, "composite/m", url, why="for all")
    assert (sent.id, sent.name, sent.there) == (model, "composite/m:latest", [])
    assert set(sent.copied) == objects(registry)
    assert sent.bytes == sum(path.stat().st_size for path in registry.root.glob("blobs/sha256/*"))

    other = Registry.open(tmp_path / "other")
    fetched = pull(other, "composite/m", url, called="mine:best")
    assert (fetched.id, set(fetched.copied)) == (model, objects(registry))
    assert other.resolve("mine:best") == model
    assert other.verify().problems == ()
    for id_ in (model, *(parent.id for parent in registry.manifest(model).parents)):
        mine, theirs = other.materialize(id_), registry.materialize(id_)
        assert {p.relative_to(mine): p.read_bytes() for p in mine.rglob("*.bin")} == {
            p.relative_to(theirs): p.read_bytes() for p in theirs.rglob("*.bin")
        }
    assert other.log("mine")[0].why == f"pulled from {url.removeprefix('file://')}"
    assert not list((other.root / "tmp").iterdir())

    for again in (push(registry, "composite/m", url), pull(other, model, url, called="mine:best")):
        assert (set(again.there), again.copied, again.repaired) == (objects(registry), [], [])
        assert again.bytes == 0
    assert len(other.log("mine")) == 1
    with pytest.raises(InvalidError, match="says no name"):
        pull(other, model[:8], url)
    assert pull(other, model[:8], url, called="short").id == model


def test_a_pushed_directory_is_a_registry(registry, model, tmp_path, capsys) -> None:
    far = str(tmp_path / "far")
    assert run(["registry", "push", "composite/m", far, "--registry", str(registry.root), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["id"] == model
    assert set(said["sent"]) == objects(registry)
    assert run(["registry", "verify", "--registry", far]) == 0
    assert run(["registry", "show", "composite/m", "--path", "--registry", far]) == 0
    (entry,) = Registry.open(Path(far)).log("composite/m")
    assert entry.why.startswith("pushed from ")
    assert entry.why.endswith(f":{registry.root}")


def test_what_is_in_a_bucket_is_a_registry_and_nothing_is_sent_twice(
    registry, model, bucket, tmp_path
) -> None:
    url = f"s3://{bucket.name}/a/b"
    push(registry, "composite/m", url)
    push(registry, "composite/m", url)
    assert push(registry, "parts/one", url).copied == []
    keys = [version.key for version in bucket.object_versions.all()]
    assert len(keys) == len(set(keys))  # each was put once
    copy = downloaded(bucket, "a/b", tmp_path / "copy")
    assert copy.verify().problems == ()
    assert {f"{e.name}:{e.tag}" for e in copy.list().entries} == {"composite/m:latest", "parts/one:latest"}
    # A tag that moves is in the log, with where it came from.
    push(registry, "parts/two", url, called="composite/m", why="better")
    (first, second) = downloaded(bucket, "a/b", tmp_path / "copy").log("composite/m")
    assert (first.old, first.new, second.old) == (None, model, model)
    assert second.why.startswith("better (pushed from ")


def blob_of(registry: Registry, model: str, path: str) -> str:
    return f"blobs/sha256/{registry.manifest(model).files[path].sha256}"


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone", "manifest"])
def test_what_is_damaged_there_is_refused_and_nothing_of_it_kept(
    registry, model, bucket, tmp_path, harm, capsys
) -> None:
    url = f"s3://{bucket.name}/models"
    push(registry, "composite/m", url)
    path = f"manifests/sha256/{model}.json" if harm == "manifest" else blob_of(registry, model, "sub/own.bin")
    stored = bucket.Object(f"models/{path}")
    whole = stored.get()["Body"].read()
    if harm == "gone":
        stored.delete()
    else:
        stored.put(Body=whole[:-1] if harm == "cut" else bytes([whole[0] ^ 1]) + whole[1:])
    other = Registry.open(tmp_path / "other")
    assert run(["registry", "pull", "composite/m", url, "--registry", str(other.root)]) == 4
    said = capsys.readouterr().err.splitlines()[-1]
    assert path in said
    assert "missing" in said if harm == "gone" else "damaged" in said
    assert path not in objects(other)
    assert (other.list().entries, other.verify().problems) == ((), ())
    assert not list((other.root / "tmp").iterdir())
    # What can be seen without reading it is mended by the next push; the rest once it is removed there.
    if harm in ("flipped", "manifest"):
        stored.delete()
    mended = push(registry, "composite/m", url)
    assert (mended.copied, mended.repaired) == (([], [path]) if harm == "cut" else ([path], []))
    before = objects(other)
    assert set(pull(other, "composite/m", url).there) == before
    assert other.verify().ok


def test_what_is_damaged_here_is_repaired_by_a_pull_and_not_pushed(
    registry, model, bucket, tmp_path, capsys
) -> None:
    url, path = f"s3://{bucket.name}/models", blob_of(registry, model, "sub/own.bin")
    push(registry, "composite/m", url, called="whole")
    for damaged in (path, f"manifests/sha256/{model}.json"):
        file = registry.root / damaged
        file.chmod(0o644)
        file.write_bytes(b"X" + file.read_bytes()[1:])
    with pytest.raises(DamagedError, match="damaged"):
        push(registry, "composite/m", f"s3://{bucket.name}/new")
    assert run(["registry", "pull", "whole", url, "--registry", str(registry.root)]) == 0
    assert f"Repaired: {path}" in capsys.readouterr().err
    assert registry.verify().ok

    file.with_name(file.name).chmod(0o644)
    blob = registry.root / path
    blob.chmod(0o644)
    blob.write_bytes(b"X" + blob.read_bytes()[1:])
    with pytest.raises(DamagedError, match="damaged here"):
        push(registry, "composite/m", f"s3://{bucket.name}/new")
    assert f"new/{path}" not in {one.key for one in bucket.objects.all()}
    with pytest.raises(DamagedError, match="damaged"):
        push(registry, "composite/m", str(tmp_path / "new"))
    assert Registry.open(tmp_path / "new").list().entries == ()
    # A directory is a registry that mends itself.
    far = tmp_path / "far"
    pull(registry, "whole", url)
    push(registry, "composite/m", str(far))
    (far / path).chmod(0o644)
    (far / path).write_bytes(b"X" + blob.read_bytes()[1:])
    assert push(registry, "composite/m", str(far)).repaired == [path]
    assert Registry.open(far).verify().ok


def test_what_is_too_large_for_one_request_appears_whole_or_not_at_all(
    registry, model, bucket, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("earec_core.remote._AT_ONCE", 1)
    url, path = f"s3://{bucket.name}/models", blob_of(registry, model, "sub/own.bin")
    push(registry, "composite/m", url)
    assert set(pull(Registry.open(tmp_path / "other"), "composite/m", url).copied) == objects(registry)
    (registry.root / path).chmod(0o644)
    (registry.root / path).write_bytes(b"X" + (registry.root / path).read_bytes()[1:])
    with pytest.raises(DamagedError, match="damaged here"):
        push(registry, "composite/m", f"s3://{bucket.name}/new")
    assert f"new/{path}" not in {one.key for one in bucket.objects.all()}
    assert not list(bucket.multipart_uploads.all())


class Stopping(FileSystemRemote):
    """Stops before the n-th write."""

    left = 0

    def put(self, path: str, chunks: Iterable[bytes]) -> None:
        Stopping.left -= 1
        if Stopping.left < 0:
            raise KeyboardInterrupt
        super().put(path, chunks)


def test_a_push_stopped_before_any_write_shows_no_model_and_goes_on(registry, model, tmp_path) -> None:
    for writes in range(20):
        remote = open_remote(f"memory:/{tmp_path}/{writes}")
        Stopping.left = writes
        stopped = False
        try:
            send(registry, Stopping(remote.fs, remote.root, remote.url), "composite/m")
        except KeyboardInterrupt:
            stopped = True
        for path in remote.files(""):
            (tmp_path / f"copy{writes}" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"copy{writes}" / path).write_bytes(remote.read(path) or b"")
        there = Registry.open(tmp_path / f"copy{writes}")
        assert there.verify().problems == ()
        assert [entry.id for entry in there.list().entries] == ([] if stopped else [model])
        assert set(send(registry, remote, "composite/m").there) == objects(there)
        if not stopped:
            break
    assert writes == len(objects(registry)) + 3  # the marker before them, log and tag behind
    assert not list((registry.root / "tmp").iterdir())


class Short(FileSystemRemote):
    """A location that loses the last byte of every blob."""

    def put(self, path: str, chunks: Iterable[bytes]) -> None:
        data = b"".join(chunks)
        super().put(path, [data[:-1] if path.startswith("blobs/") else data])


def test_a_file_that_arrives_short_is_refused_and_removed(registry, model, tmp_path) -> None:
    remote = open_remote(f"memory:/{tmp_path}/short")
    with pytest.raises(DamagedError, match="arrived with 29999 bytes instead of 30000"):
        send(registry, Short(remote.fs, remote.root, remote.url), "composite/m")
    assert list(remote.files("")) == ["earec-registry.json"]


class Cleaning(FileSystemRemote):
    """Lets the registry be cleaned without grace before each file is read."""

    clean: ClassVar[Callable[[], object]]
    opened: ClassVar[list[str]]

    def chunks(self, path: str) -> Iterator[bytes]:
        Cleaning.clean()
        Cleaning.opened.append(path)
        yield from super().chunks(path)


def test_gc_takes_nothing_that_a_pull_has_fetched_and_nothing_is_fetched_twice(
    registry, model, tmp_path
) -> None:
    far, other = f"memory:/{tmp_path}/far", Registry.open(tmp_path / "other")
    push(registry, "composite/m", far)
    Cleaning.clean, Cleaning.opened = lambda: Registry.open(other.root).gc(grace_s=-1), []
    remote = open_remote(far)
    fetched = fetch(other, Cleaning(remote.fs, remote.root, remote.url), "composite/m")
    blobs = [path for path in Cleaning.opened if path.startswith("blobs/")]
    assert len(blobs) == len(set(blobs)) == 4
    assert set(fetched.copied) == objects(other) == objects(registry)
    assert other.verify().ok


def test_gc_takes_nothing_that_is_being_pushed(registry, model, tmp_path) -> None:
    def untag_and_clean(*_: object) -> None:
        for entry in registry.list().entries:
            registry.untag(entry.name, entry.tag)
        registry.gc(grace_s=-1)

    before = objects(registry)
    sent = push(registry, "composite/m", f"memory:/{tmp_path}/far", progress=untag_and_clean)
    assert objects(registry) == before == set(sent.copied)
    registry.gc(grace_s=-1)
    assert objects(registry) == set()


def test_a_place_of_something_else_is_refused(registry, model, bucket, tmp_path) -> None:
    bucket.put_object(Key="data/notes.txt", Body=b"mine")
    with pytest.raises(LayoutError, match="not empty and not a registry"):
        push(registry, "composite/m", f"s3://{bucket.name}/data")
    push(registry, "composite/m", f"s3://{bucket.name}/models")
    with pytest.raises(InvalidError, match="taken"):
        push(registry, "composite/m", f"s3://{bucket.name}/models", called="composite:m")
    with pytest.raises(InvalidError, match="taken"):
        push(registry, "composite/m", f"s3://{bucket.name}/models", called="composite/m/latest/x")
    bucket.put_object(Key="later/earec-registry.json", Body=b'{"format": "earec-registry", "layout": 2}')
    for act in (push, pull):
        with pytest.raises(LayoutError, match="layout 2"):
            act(registry, "composite/m", f"s3://{bucket.name}/later")


@pytest.mark.parametrize(
    ("act", "where", "code", "says"),
    [
        ("push", "s3://no-such-bucket-here/x", 2, "is not there"),
        ("pull", "s3://no-such-bucket-here/x", 2, "There is no registry in"),
        ("pull", "s3://{bucket}/nothing", 2, "There is no registry in"),
        ("pull", "{folder}/nothing", 2, "There is no registry in"),
        ("push", "nope://user:do-not-show@host/x", 2, "Protocol not known"),
        ("pull", "gs://bucket/x", 5, "gcsfs"),
        ("push", "http://user:do-not-show@127.0.0.1:9/x?sig=do-not-show", 1, "Could not"),
        ("push", "{folder}/registry/blobs", 4, "not empty and not a registry"),
    ],
)
def test_a_location_that_does_not_do_is_one_sentence(
    registry, model, bucket, tmp_path, act, where, code, says, capsys
) -> None:
    url = where.format(bucket=bucket.name, folder=tmp_path)
    assert run(["registry", act, "composite/m", url, "--registry", str(registry.root)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    assert says in said.err
    assert SECRET not in said.err


def test_a_server_that_refuses_or_is_away_is_one_sentence(
    registry, model, bucket, server, monkeypatch, capsys
) -> None:
    import requests

    argv = ["registry", "push", "composite/m", f"s3://{bucket.name}/x", "--registry", str(registry.root)]
    requests.post(f"{server}/moto-api/reset-auth", data=b"0", timeout=5)
    try:
        assert run(argv) == 1
    finally:
        requests.post(f"{server}/moto-api/reset-auth", data=b"inf", timeout=5)
    refused = capsys.readouterr().err
    assert "does not let you" in refused
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    S3FileSystem.clear_instance_cache()
    assert run(argv) == 1
    away = capsys.readouterr().err
    S3FileSystem.clear_instance_cache()
    assert "Could not connect" in away
    for said in (refused, away):
        assert said.count("\n") == 1
        assert SECRET not in said


def test_an_unknown_model_is_named_with_those_there_are(registry, model, tmp_path) -> None:
    far = str(tmp_path / "far")
    push(registry, "composite/m", far)
    with pytest.raises(
        RegistryError, match=r"no model named 'composite/n'.*It has composite/m:latest"
    ) as caught:
        pull(registry, "composite/n", far)
    assert caught.value.exit_code == 2
    with pytest.raises(RegistryError, match="no model 000000000000 in"):
        pull(registry, "0" * 64, far, called="x")
    with pytest.raises(RegistryError, match="no model named"):
        push(registry, "composite/n", str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()


def test_observers_hear_of_a_pulled_model(registry, model, tmp_path) -> None:
    push(registry, "composite/m", str(tmp_path / "far"))
    heard: list[dict[str, Any]] = []
    other = Registry.open(tmp_path / "other", added=lambda **event: heard.append(event))
    pull(other, "composite/m", str(tmp_path / "far"))
    (event,) = heard
    assert (event["name"], event["digest"]) == ("composite/m:latest", model)
    assert event["manifest"]["kind"] == "composite"
