//! Paths and URLs: where they lead, and the one name of an output.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use url::Url;

use super::objects::Object;
use crate::cache::error::{CacheError, CacheResult};

/// Where a path leads.
#[derive(Debug)]
pub(in crate::cache) enum Place {
    /// To this machine.
    Local(PathBuf),
    /// To an object store.
    Object(Object),
}

/// Links that are followed one after the other at most, as the system does.
const MOST_LINKS: usize = 40;

/// Tells where a path leads.
///
/// # Errors
/// [`CacheError::Argument`] for an empty path, a URL of another scheme, or one without a bucket.
pub(in crate::cache) fn place_of(path: &Path) -> CacheResult<Place> {
    if path.as_os_str().is_empty() {
        let message =
            "the path of a file or folder is empty\nhint: is a variable of the shell unset?";
        return Err(CacheError::Argument(message.to_owned()));
    }
    let Some((scheme, _)) = path.to_str().and_then(|text| text.split_once(':')) else {
        return Ok(Place::Local(path.to_owned()));
    };
    let refuse = |why: &str| CacheError::Argument(format!("{}: {why}", path.display()));
    let text = path.to_string_lossy();
    if !text[scheme.len()..].starts_with("://") {
        // What pathlib makes of a URL.
        if matches!(scheme, "s3" | "gs") && text[scheme.len()..].starts_with(":/") {
            return Err(refuse("a URL has two slashes; give it as a str, not as a Path"));
        }
        return Ok(Place::Local(path.to_owned()));
    }
    match scheme {
        // Keys are taken as they are, `%`, `#` and spaces too, as by the stores' own tools.
        "s3" | "gs" => {
            let rest = &text[scheme.len() + 3..];
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            Ok(Place::Object(Object::at(path, scheme, bucket, key)?))
        }
        "file" => {
            let url = Url::parse(&text).map_err(|error| refuse(&format!("not a URL: {error}")))?;
            let local = url.to_file_path();
            local.map(Place::Local).map_err(|()| refuse("not the URL of a file of this machine"))
        }
        _ => Err(refuse("expected a path, or a URL of s3://, gs:// or file://")),
    }
}

/// The path of a file on this machine, and URLs of objects as they are; without slashes at the end.
///
/// # Errors
/// [`CacheError::Argument`] for a bucket: beside it there is no room for what an output has beside it.
pub(in crate::cache) fn output_path(path: &Path) -> CacheResult<PathBuf> {
    match place_of(path)? {
        Place::Local(local) => Ok(local),
        Place::Object(object) if object.is_bucket() => {
            let message = "is a bucket; name a file or a folder in it";
            Err(CacheError::Argument(format!("{}: {message}", path.display())))
        }
        Place::Object(_) => {
            Ok(PathBuf::from(path.to_string_lossy().trim_end_matches('/').to_owned()))
        }
    }
}

/// The one name of an output, however it is spelled: absolute, and without `.`, `..`, links or slashes
/// at the end. Folders above a file that is not there yet are made.
///
/// # Errors
/// As for [`output_path`]; [`CacheError::Argument`] for a name that ends in a slash and is no folder;
/// [`CacheError::Io`].
pub(in crate::cache) fn resolve_output(path: &Path) -> CacheResult<PathBuf> {
    let mut target = match place_of(path)? {
        Place::Local(local) => local,
        Place::Object(_) => return output_path(path),
    };
    let wrong = |error| CacheError::io(path, "resolve", error);
    for _ in 0..MOST_LINKS {
        match fs::canonicalize(&target) {
            Ok(whole) => return Ok(whole),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(wrong(error)),
        }
        let (folder, name) = new_file(&target, path)?;
        super::make_folder(&folder)?;
        let folder = fs::canonicalize(&folder).map_err(wrong)?;
        match fs::read_link(folder.join(&name)) {
            // A link to what is not there yet: the output is made where it leads.
            Ok(leads) => target = folder.join(leads),
            Err(_) => return Ok(folder.join(name)),
        }
    }
    Err(CacheError::Argument(format!("{}: links in a circle", path.display())))
}

/// The folder and the name of a file that is not there yet.
fn new_file(target: &Path, given: &Path) -> CacheResult<(PathBuf, std::ffi::OsString)> {
    let refuse = |why: &str| CacheError::Argument(format!("{}: {why}", given.display()));
    let bytes = target.as_os_str().as_encoded_bytes();
    if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        return Err(refuse("there is no such folder\nhint: make it first, or name a file"));
    }
    let name = target.file_name().ok_or_else(|| refuse("names neither a file nor a folder"))?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    Ok((folder.unwrap_or(Path::new(".")).to_owned(), name.to_owned()))
}
