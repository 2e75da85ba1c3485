//! Where the files of a cache are: on this machine, or in an object store.
//!
//! A path is a path, or a URL: `s3://bucket/key`, `gs://bucket/key`, `file:///path`. Everything here
//! takes either, so that nothing above need know which it is.

mod objects;
mod open_object;
mod place;
mod replaces;
mod requests;
mod sink;
mod stores;
mod threads;
mod upload;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(super) use open_object::OpenObject;
pub(super) use place::{Place, output_path, place_of, resolve_output};
pub(super) use replaces::{Replaces, Version};
pub(super) use sink::{Sink, Written};
pub use stores::use_store;
pub(super) use threads::many_at_once;

use parquet::file::reader::ChunkReader;

use super::error::{CacheError, CacheResult};
use super::input::Input;
use super::stamp::Stamp;

/// The ending of files that are being written.
pub(super) const TEMPORARY: &str = "tmp";

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To nothing.
    Missing,
    /// To a file, or an object.
    File,
    /// To a folder; in an object store, to the beginning of objects' names.
    Folder,
}

/// What a path leads to.
///
/// # Errors
/// [`CacheError::Argument`] for a URL that cannot be used; [`CacheError::Io`].
pub fn kind(path: &Path) -> CacheResult<Kind> {
    match place_of(path)? {
        Place::Local(local) => match local.metadata() {
            Ok(metadata) if metadata.is_dir() => Ok(Kind::Folder),
            Ok(_) => Ok(Kind::File),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kind::Missing),
            Err(error) => Err(CacheError::io(path, "open", error)),
        },
        Place::Object(object) => object.kind(),
    }
}

/// Whether a writer of this path makes one part of a folder rather than a whole file.
///
/// Object stores have no folders that are there before something is in them, so there the name tells.
pub(super) fn is_folder_output(path: &Path) -> CacheResult<bool> {
    match kind(path)? {
        Kind::Folder => Ok(true),
        Kind::File => Ok(false),
        Kind::Missing => Ok(is_remote(path)? && path.extension().is_none_or(|e| e != "parquet")),
    }
}

/// Whether a path is in an object store.
///
/// # Errors
/// [`CacheError::Argument`] for a URL that cannot be used.
pub fn is_remote(path: &Path) -> CacheResult<bool> {
    Ok(matches!(place_of(path)?, Place::Object(_)))
}

/// Whether there is a file.
pub(super) fn is_file(path: &Path) -> CacheResult<bool> {
    match place_of(path)? {
        Place::Local(local) => Ok(local.is_file()),
        Place::Object(object) => Ok(object.version()?.is_some()),
    }
}

/// The version of a file; `None` where there is none.
pub(super) fn version(path: &Path) -> CacheResult<Option<Version>> {
    match place_of(path)? {
        Place::Local(local) => match local.metadata() {
            Ok(metadata) => Ok(Some(Version::File(Stamp::of(&metadata)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CacheError::io(path, "open", error)),
        },
        Place::Object(object) => Ok(object.version()?.map(Version::Object)),
    }
}

/// The bytes of a small file, and its version; `None` where there is none.
pub(super) fn read(path: &Path) -> CacheResult<Option<(Vec<u8>, Version)>> {
    match place_of(path)? {
        Place::Local(local) => match fs::read(local) {
            Ok(bytes) => {
                let version = Version::Bytes(blake3::hash(&bytes));
                Ok(Some((bytes, version)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CacheError::io(path, "read", error)),
        },
        Place::Object(object) => {
            let read = object.read()?;
            Ok(read.map(|(bytes, tag)| (bytes.into(), Version::Object(tag))))
        }
    }
}

/// The files of a folder whose names have this extension, by name.
///
/// # Errors
/// [`CacheError::Io`], and for a folder of this machine that is not there [`CacheError::NotFound`].
pub fn list(folder: &Path, ending: &str) -> CacheResult<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = match place_of(folder)? {
        Place::Local(local) => {
            let wrong = |error| CacheError::io(folder, "list", error);
            let mut names = Vec::new();
            for entry in local.read_dir().map_err(wrong)? {
                let entry = entry.map_err(wrong)?;
                if entry.path().is_file() {
                    names.push(entry.path());
                }
            }
            names
        }
        Place::Object(object) => object.list()?.iter().map(|name| folder.join(name)).collect(),
    };
    files.retain(|file| file.extension().is_some_and(|extension| extension == ending));
    files.sort_unstable();
    Ok(files)
}

/// Removes a file.
pub(super) fn remove(path: &Path) -> CacheResult<()> {
    match place_of(path)? {
        Place::Local(local) => {
            fs::remove_file(local).map_err(|error| CacheError::io(path, "remove", error))
        }
        Place::Object(object) => object.remove(),
    }
}

/// Opens a file to be read, as Parquet for example.
///
/// # Errors
/// [`CacheError::NotFound`], [`CacheError::Io`].
pub fn open(path: &Path) -> CacheResult<impl ChunkReader + Clone + 'static> {
    Input::open(path)
}

/// The bytes of a file; `None` where there is none.
///
/// # Errors
/// [`CacheError::Io`].
pub fn read_file(path: &Path) -> CacheResult<Option<Vec<u8>>> {
    Ok(read(path)?.map(|(bytes, _)| bytes))
}

/// Writes a file that is there whole or not at all, even after a crash.
///
/// # Errors
/// [`CacheError::Io`]; the former file then still stands.
pub fn write_file(path: &Path, bytes: &[u8]) -> CacheResult<()> {
    replace(path, bytes, Replaces::Anything).map(|_| ())
}

/// Writes a small file in the place of the former one, in one step; returns its version.
///
/// # Errors
/// [`CacheError::Conflict`] where another process has changed what is replaced; the former file then
/// stands. [`CacheError::Io`]; then either may stand: the answer of a store may be lost.
pub(super) fn replace(path: &Path, bytes: &[u8], replaces: Replaces<'_>) -> CacheResult<Version> {
    if let Place::Object(object) = place_of(path)? {
        return object.put(bytes.to_vec(), &replaces.condition()).map(Version::Object);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    write_atomically(folder.unwrap_or(Path::new(".")), path, replaces, |mut sink| {
        sink.write_all(bytes).map_err(|error| CacheError::io(path, "write", error))?;
        Ok(sink)
    })?;
    Ok(Version::Bytes(blake3::hash(bytes)))
}

/// Removes a file if there is one.
///
/// # Errors
/// [`CacheError::Io`].
pub fn remove_file(path: &Path) -> CacheResult<()> {
    match remove(path) {
        Err(CacheError::NotFound { .. }) => Ok(()),
        removed => removed,
    }
}

/// Makes a folder of this machine and those above it that are missing, so that it is there after a
/// power cut, too.
pub(super) fn make_folder(folder: &Path) -> CacheResult<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_folder(above)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(CacheError::io(folder, "create", error))
        }
        _ => sync_folder_of(folder),
    }
}

/// Writes a file that is there whole or not at all, even after a crash.
///
/// On this machine that is by way of a temporary file in the folder `temporary_in`; an object is sent in
/// one request. What is left of it on an error is removed.
///
/// # Errors
/// [`CacheError::Conflict`] where another process has changed what is replaced; [`CacheError::Io`].
pub(super) fn write_atomically(
    temporary_in: &Path,
    target: &Path,
    replaces: Replaces<'_>,
    write: impl FnOnce(Sink) -> CacheResult<Sink>,
) -> CacheResult<Written> {
    match place_of(target)? {
        Place::Local(local) => write_locally(temporary_in, target, &local, replaces, write),
        Place::Object(object) => {
            let sink = write(Sink::in_memory(target))?;
            Ok(sink.put(|bytes| object.put(bytes, &replaces.condition()))?.0)
        }
    }
}

/// The same for a file of any size: an object is sent in pieces, and is not there before all of it is.
///
/// # Errors
/// As for [`write_atomically`]. Of an object of many pieces, what is replaced is looked at just before
/// the last of them is sent: no store that we reach makes a condition of that.
pub(super) fn write_large(
    temporary_in: &Path,
    target: &Path,
    replaces: Replaces<'_>,
    write: impl FnOnce(Sink) -> CacheResult<Sink>,
) -> CacheResult<Written> {
    match place_of(target)? {
        Place::Local(local) => write_locally(temporary_in, target, &local, replaces, write),
        Place::Object(object) => write(Sink::upload(object.upload(replaces.condition())))?.finish(),
    }
}

fn write_locally(
    temporary_in: &Path,
    target: &Path,
    local: &Path,
    replaces: Replaces<'_>,
    write: impl FnOnce(Sink) -> CacheResult<Sink>,
) -> CacheResult<Written> {
    let mut name = local.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(TEMPORARY);
    let temporary = output_path(temporary_in)?.join(name);
    let written = write_and_rename(target, local, &temporary, replaces, write);
    if written.is_err() {
        // The error at hand says more than a failure to tidy up would.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_and_rename(
    target: &Path,
    local: &Path,
    temporary: &Path,
    replaces: Replaces<'_>,
    write: impl FnOnce(Sink) -> CacheResult<Sink>,
) -> CacheResult<Written> {
    let file = File::create(temporary).map_err(|error| CacheError::io(target, "create", error))?;
    let written = write(Sink::file(target, file))?.finish()?;
    replaces.require(target, local)?;
    fs::rename(temporary, local).map_err(|error| CacheError::io(target, "write", error))?;
    sync_folder_of(local)?;
    Ok(written)
}

/// Begins a file of this machine that grows at `path` until it is put in the place of `target`; returns
/// it for writing and for reading.
pub(super) fn begin(path: &Path, target: &Path) -> CacheResult<(Sink, File)> {
    let wrong = |error| CacheError::io(target, "create", error);
    let file = File::create(path).map_err(wrong)?;
    Ok((Sink::file(target, file), File::open(path).map_err(wrong)?))
}

/// Puts a file that was begun in its place, whole or not at all, even after a crash.
///
/// # Errors
/// [`CacheError::Conflict`] where another process has changed what is replaced; [`CacheError::Io`]. The
/// former file then still stands.
pub(super) fn put_in_place(
    grown: Sink,
    path: &Path,
    replaces: Replaces<'_>,
) -> CacheResult<Written> {
    let target = grown.path().to_owned();
    let written = grown.finish()?;
    replaces.require(&target, &target)?;
    fs::rename(path, &target).map_err(|error| CacheError::io(&target, "write", error))?;
    sync_folder_of(&target)?;
    Ok(written)
}

/// Gives a file that was begun a second name, `target`, under which nothing is yet; returns `None`
/// where the file system cannot do that.
pub(super) fn link(grown: Sink, path: &Path, target: &Path) -> CacheResult<Option<Written>> {
    let written = grown.finish()?;
    if fs::hard_link(path, target).is_err() {
        return Ok(None);
    }
    sync_folder_of(target)?;
    Ok(Some(written))
}

/// Waits until the entry of a file or folder of this machine is on the disk.
pub(super) fn sync_folder_of(file: &Path) -> CacheResult<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    sync_folder(folder.unwrap_or(Path::new(".")))
}

/// Waits until a folder's entries are on the disk.
fn sync_folder(folder: &Path) -> CacheResult<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| CacheError::io(folder, "sync", error))
}

/// Removes what a killed process was in the middle of writing in a folder.
pub(super) fn remove_temporary(folder: &Path) -> CacheResult<()> {
    match place_of(folder)? {
        Place::Local(_) => list(folder, TEMPORARY)?.iter().try_for_each(|file| remove(file)),
        Place::Object(_) => Ok(()), // unfinished uploads are not there yet
    }
}
