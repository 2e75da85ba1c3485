//! Files of this machine.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::input::Input;
use super::sink::{Sink, Written};
use super::stamp::Stamp;
use super::store::{Kind, Size, Store, Write};
use super::version::{Replaces, Version};
use crate::format::error::{CacheError, CacheResult};

/// The ending of files that are being written.
pub(crate) const TEMPORARY: &str = "tmp";

/// A path of this machine.
#[derive(Debug)]
pub(super) struct Local {
    /// As it was given, for errors: the URL of a file, too.
    given: PathBuf,
    path: PathBuf,
}

impl Local {
    pub(super) fn new(given: &Path, path: PathBuf) -> Self {
        Self { given: given.to_owned(), path }
    }

    fn wrong(&self, action: &'static str) -> impl Fn(io::Error) -> CacheError + '_ {
        move |error| CacheError::io(&self.given, action, error)
    }
}

impl Store for Local {
    fn local(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn kind(&self) -> CacheResult<Kind> {
        match self.path.metadata() {
            Ok(metadata) if metadata.is_dir() => Ok(Kind::Folder),
            Ok(_) => Ok(Kind::File),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kind::Missing),
            Err(error) => Err(self.wrong("open")(error)),
        }
    }

    fn is_file(&self) -> CacheResult<bool> {
        Ok(self.path.is_file())
    }

    fn version(&self) -> CacheResult<Option<Version>> {
        match self.path.metadata() {
            Ok(metadata) => Ok(Some(Version::File(Stamp::of(&metadata)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.wrong("open")(error)),
        }
    }

    fn read(&self) -> CacheResult<Option<(Vec<u8>, Version)>> {
        match fs::read(&self.path) {
            Ok(bytes) => {
                let version = Version::Bytes(blake3::hash(&bytes));
                Ok(Some((bytes, version)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.wrong("read")(error)),
        }
    }

    fn list(&self) -> CacheResult<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in self.path.read_dir().map_err(self.wrong("list"))? {
            let path = entry.map_err(self.wrong("list"))?.path();
            if path.is_file() {
                files.push(path);
            }
        }
        Ok(files)
    }

    fn remove(&self) -> CacheResult<()> {
        fs::remove_file(&self.path).map_err(self.wrong("remove"))
    }

    fn open(&self) -> CacheResult<Input> {
        let file = File::open(&self.path).map_err(self.wrong("open"))?;
        let metadata = file.metadata().map_err(self.wrong("stat"))?;
        if metadata.is_dir() {
            return Err(CacheError::format(&self.given, "is a folder, expected a Parquet file"));
        }
        Input::local(&self.path, file, metadata.len()).map_err(self.wrong("stat"))
    }

    fn replace(&self, bytes: &[u8], replaces: Replaces<'_>) -> CacheResult<Version> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let write: Write<'_> = Box::new(|mut sink| {
            sink.write_all(bytes).map_err(self.wrong("write"))?;
            Ok(sink)
        });
        self.write(folder.unwrap_or(Path::new(".")), Size::Small, replaces, write)?;
        Ok(Version::Bytes(blake3::hash(bytes)))
    }

    fn write(
        &self,
        temporary_in: &Path,
        _: Size,
        replaces: Replaces<'_>,
        write: Write<'_>,
    ) -> CacheResult<Written> {
        write_locally(temporary_in, &self.given, &self.path, replaces, write)
    }

    fn remove_temporary(&self) -> CacheResult<()> {
        let unfinished = |path: &PathBuf| path.extension().is_some_and(|end| end == TEMPORARY);
        self.list()?.iter().filter(|path| unfinished(path)).try_for_each(|path| {
            fs::remove_file(path).map_err(|error| CacheError::io(path, "remove", error))
        })
    }

    fn output_path(&self) -> CacheResult<PathBuf> {
        Ok(self.path.clone())
    }
}

/// Makes a folder of this machine and those above it that are missing, so that it is there after a
/// power cut, too.
pub(crate) fn make_folder(folder: &Path) -> CacheResult<()> {
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

fn write_locally(
    temporary_in: &Path,
    target: &Path,
    local: &Path,
    replaces: Replaces<'_>,
    write: Write<'_>,
) -> CacheResult<Written> {
    let mut name = local.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(TEMPORARY);
    let temporary = temporary_in.join(name);
    let written = write_and_rename(target, local, &temporary, replaces, write);
    if written.is_err() {
        // The first error says more than a failure to tidy up would.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_and_rename(
    target: &Path,
    local: &Path,
    temporary: &Path,
    replaces: Replaces<'_>,
    write: Write<'_>,
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
pub(crate) fn begin(path: &Path, target: &Path) -> CacheResult<(Sink, File)> {
    let wrong = |error| CacheError::io(target, "create", error);
    let file = File::create(path).map_err(wrong)?;
    Ok((Sink::file(target, file), File::open(path).map_err(wrong)?))
}

/// Puts a file that was begun in its place, whole or not at all, even after a crash.
///
/// # Errors
/// [`CacheError::Conflict`] where another process has changed what is replaced; [`CacheError::Io`]. The
/// former file then still stands.
pub(crate) fn put_in_place(
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
pub(crate) fn link(grown: Sink, path: &Path, target: &Path) -> CacheResult<Option<Written>> {
    let written = grown.finish()?;
    if fs::hard_link(path, target).is_err() {
        return Ok(None);
    }
    sync_folder_of(target)?;
    Ok(Some(written))
}

/// Waits until the entry of a file or folder of this machine is on the disk.
pub(crate) fn sync_folder_of(file: &Path) -> CacheResult<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    sync_folder(folder.unwrap_or(Path::new(".")))
}

/// Waits until a folder's entries are on the disk.
fn sync_folder(folder: &Path) -> CacheResult<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| CacheError::io(folder, "sync", error))
}
