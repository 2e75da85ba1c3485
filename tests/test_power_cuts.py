"""What a power cut may take: names and bytes that no one waited for; so the waits are listed."""

import subprocess
import sys
from pathlib import Path

import pytest

# Notes, in order, what a process makes durable and what it names.
NOTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void note(const char *form, ...) {
    FILE *log = fopen(getenv("NOTES"), "a");
    va_list arguments;
    va_start(arguments, form);
    vfprintf(log, form, arguments);
    va_end(arguments);
    fclose(log);
}
static void synced(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length > 0) { path[length] = 0; note("sync\t%s\n", path); }
}
#define NEXT(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))
int fsync(int fd) { synced(fd); return NEXT(fsync)(fd); }
int fdatasync(int fd) { synced(fd); return NEXT(fdatasync)(fd); }
int rename(const char *from, const char *to) {
    note("rename\t%s\t%s\n", from, to);
    return NEXT(rename)(from, to);
}
int linkat(int f, const char *from, int t, const char *to, int flags) {
    note("link\t%s\t%s\n", from, to);
    return NEXT(linkat)(f, from, t, to, flags);
}
int link(const char *from, const char *to) {
    note("link\t%s\t%s\n", from, to);
    return NEXT(link)(from, to);
}
int mkdir(const char *path, mode_t mode) {
    note("mkdir\t%s\n", path);
    return NEXT(mkdir)(path, mode);
}
"""

# Writes a cache and says when rows are promised to be safe.
WRITER = """
import os, sys, numpy as np
from ebm_encode._core import CacheWriter, Identity
output, identity, commits = sys.argv[1], Identity.from_json(sys.argv[2]), sys.argv[3] == "commits"
def promise(what):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"promise\\t{what}\\n")
writer = CacheWriter(output)
writer.open(identity, 16)
rows = np.random.default_rng(0).standard_normal((1200, 16)).astype(np.float32)
for start in (0, 300, 1100):
    end = {0: 300, 300: 1100, 1100: 1200}[start]
    assert not any(writer.append([f"state {i}" for i in range(start, end)], rows[start:end]))
    writer.checkpoint()
    promise("checkpoint")
    if commits:
        writer.commit({})
        promise("commit")
writer.finish({})
promise("finish")
"""


@pytest.fixture(scope="module")
def noter(tmp_path_factory):
    """A library that notes the calls of a process that loads it first."""
    folder = tmp_path_factory.mktemp("noter")
    (folder / "noter.c").write_text(NOTER)
    library = folder / "noter.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, folder / "noter.c", "-ldl"], check=True
    )
    return library


@pytest.mark.parametrize("name", ["new/deep/out.parquet", "cache", "committed"])
def test_nothing_is_promised_before_its_bytes_and_names_are_on_the_disk(
    noter, tmp_path, identity, name
):
    output = tmp_path / name
    commits = name == "committed"
    if not output.suffix:
        output.mkdir()
    notes = tmp_path / "notes"
    notes.touch()
    arguments = [output, identity().to_json(), "commits" if commits else "finishes"]
    subprocess.run(
        [sys.executable, "-c", WRITER, *arguments],
        env={"LD_PRELOAD": str(noter), "NOTES": str(notes), "PYTHONPATH": ":".join(sys.path)},
        check=True,
    )
    lines = [line.split("\t") for line in notes.read_text().splitlines()]
    # Python writes its own files elsewhere.
    lines = [line for line in lines if line[0] == "promise" or line[1].startswith(str(tmp_path))]
    assert [what for kind, what, *_ in lines if kind == "promise"].count("checkpoint") == 3
    synced, unsafe, named = set(), {}, 0
    for kind, path, *more in lines:
        if kind == "sync":
            synced.add(path)
            # A folder that is waited for has the names that were made in it.
            unsafe = {made: folder for made, folder in unsafe.items() if folder != path}
        elif kind == "promise":
            assert not unsafe, f"{path}: not on the disk: {unsafe}"
        else:
            target = Path(more[0] if more else path)
            named += 1
            if kind != "mkdir":
                assert path in synced, f"{target} is named before its bytes are on the disk"
            if target.name == "manifest.json":
                assert not unsafe, f"the manifest names what is not on the disk: {unsafe}"
            unsafe[str(target)] = str(target.parent)
    assert named > 4
    made = [Path(path) for kind, path, *_ in lines if kind == "mkdir"]
    assert any(path.name.endswith(".partial") for path in made)
