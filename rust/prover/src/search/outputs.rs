//! Outputs, before anything is written to them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use ebm_cache::storage;

/// A file, whatever it is called: several names and links lead to one.
#[derive(PartialEq, Eq)]
enum Place {
    /// Device and number of what is there.
    There(u64, u64),
    /// Where there is nothing yet.
    Free(PathBuf),
}

/// Refuses an output in a folder that does not exist: more likely a mistake than a wish for one.
pub(super) fn require_folder(option: &str, output: &Path) -> anyhow::Result<()> {
    let folder = folder_of(output);
    if storage::is_remote(output)? || folder.is_dir() {
        return Ok(());
    }
    bail!(
        "{option}: {}: there is no folder {}\nhint: make it, or write to another place",
        output.display(),
        folder.display()
    )
}

/// Refuses an output that is one of these files, each with its option.
pub(super) fn require_other(
    option: &str,
    output: &Path,
    files: &[(&str, &Path)],
) -> anyhow::Result<()> {
    let Some(place) = place_of(output) else { return Ok(()) };
    for (other, path) in files {
        if place_of(path).is_some_and(|found| found == place) {
            bail!(
                "{option}: {}: is the file of {other}\nhint: write to another file",
                output.display()
            );
        }
    }
    Ok(())
}

/// `None` for what is not on this machine.
fn place_of(path: &Path) -> Option<Place> {
    if storage::is_remote(path).unwrap_or(true) {
        return None;
    }
    if let Ok(found) = fs::metadata(path) {
        return Some(Place::There(found.dev(), found.ino()));
    }
    let folder = fs::canonicalize(folder_of(path)).ok()?;
    Some(Place::Free(folder.join(path.file_name()?)))
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}
