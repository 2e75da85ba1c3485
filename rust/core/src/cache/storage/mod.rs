//! Where the files of a cache are: on this machine, or in an object store.
//!
//! A path is a path, or a URL: `s3://bucket/key`, `gs://bucket/key`, `file:///path`. Everything here
//! takes either, so that nothing above need know which it is.

mod objects;
mod place;
mod sink;
mod threads;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(super) use objects::OpenObject;
pub(super) use place::{Place, output_path, place_of};
pub(super) use sink::{Sink, Written};
pub(super) use threads::many_at_once;

use parquet::file::reader::ChunkReader;

use super::error::{CacheError, CacheResult};
use super::input::Input;

/// The ending of files that are being written.
const TEMPORARY: &str = "tmp";

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

/// A state of a file that a later state differs from; of a file on this machine nothing is known, as a
/// lock keeps it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Version(Option<objects::Tag>);

/// What may be in the place of a file that is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Replaces<'a> {
    /// Anything, or nothing.
    Anything,
    /// Nothing; in an object store, a file that came meanwhile is refused.
    Nothing,
    /// What had this version; in an object store, another is refused.
    Version(&'a Version),
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
        Place::Local(local) => Ok(local.exists().then(Version::default)),
        Place::Object(object) => Ok(object.version()?.map(|tag| Version(Some(tag)))),
    }
}

/// The bytes of a small file, and its version; `None` where there is none.
pub(super) fn read(path: &Path) -> CacheResult<Option<(Vec<u8>, Version)>> {
    match place_of(path)? {
        Place::Local(local) => match fs::read(local) {
            Ok(bytes) => Ok(Some((bytes, Version::default()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CacheError::io(path, "read", error)),
        },
        Place::Object(object) => {
            let read = object.read()?;
            Ok(read.map(|(bytes, tag)| (bytes.into(), Version(Some(tag)))))
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
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    write_atomically(folder.unwrap_or(Path::new(".")), path, Replaces::Anything, |mut sink| {
        sink.write_all(bytes).map_err(|error| CacheError::io(path, "write", error))?;
        Ok(sink)
    })
    .map(|_| ())
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

/// Removes a folder of this machine with everything in it.
pub(super) fn remove_folder(path: &Path) -> CacheResult<()> {
    fs::remove_dir_all(output_path(path)?).map_err(|error| CacheError::io(path, "remove", error))
}

/// Writes a file that is there whole or not at all, even after a crash.
///
/// On this machine that is by way of a temporary file in the folder `temporary_in`; an object is not
/// there before all of it is. What is left of it on an error is removed.
///
/// # Errors
/// [`CacheError::Locked`] where another process has changed what is replaced; [`CacheError::Io`].
pub(super) fn write_atomically(
    temporary_in: &Path,
    target: &Path,
    replaces: Replaces<'_>,
    write: impl FnOnce(Sink) -> CacheResult<Sink>,
) -> CacheResult<Written> {
    match place_of(target)? {
        Place::Local(local) => {
            let mut name = local.file_name().unwrap_or_default().to_owned();
            name.push(".");
            name.push(TEMPORARY);
            let temporary = output_path(temporary_in)?.join(name);
            let written = write_locally(target, &local, &temporary, write);
            if written.is_err() {
                // The error at hand says more than a failure to tidy up would.
                let _ = fs::remove_file(&temporary);
            }
            written
        }
        Place::Object(object) => match replaces {
            Replaces::Anything => write(Sink::upload(object.upload()?))?.finish(),
            Replaces::Nothing => {
                let sink = write(Sink::in_memory(target))?;
                sink.put(|bytes| object.put(bytes, None))
            }
            Replaces::Version(version) => {
                let sink = write(Sink::in_memory(target))?;
                sink.put(|bytes| object.put(bytes, version.0.as_ref()))
            }
        },
    }
}

fn write_locally(
    target: &Path,
    local: &Path,
    temporary: &Path,
    write: impl FnOnce(Sink) -> CacheResult<Sink>,
) -> CacheResult<Written> {
    let wrong = |error| CacheError::io(target, "write", error);
    let file = File::create(temporary).map_err(|error| CacheError::io(target, "create", error))?;
    let written = write(Sink::file(target, file))?.finish()?;
    fs::rename(temporary, local).map_err(wrong)?;
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
/// [`CacheError::Io`]; the former file then still stands.
pub(super) fn put_in_place(grown: Sink, path: &Path) -> CacheResult<Written> {
    let target = grown.path().to_owned();
    let written = grown.finish()?;
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

fn sync_folder_of(file: &Path) -> CacheResult<()> {
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
