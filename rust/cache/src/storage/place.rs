//! Paths and URLs: where they lead, and the one name of an output.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use super::local::{Local, make_folder};
use super::store::Store;
use crate::format::error::{CacheError, CacheResult};

/// Links that are followed one after the other at most, as the system does.
const MOST_LINKS: usize = 40;

/// Tells where a path leads.
///
/// # Errors
/// [`CacheError::Argument`] for an empty path, a URL of another scheme, or one without a bucket.
pub(crate) fn store_at(path: &Path) -> CacheResult<Box<dyn Store>> {
    if path.as_os_str().is_empty() {
        let message =
            "the path of a file or folder is empty\nhint: is a variable of the shell unset?";
        return Err(CacheError::Argument(message.to_owned()));
    }
    let Some((scheme, _)) = path.to_str().and_then(|text| text.split_once(':')) else {
        return Ok(Box::new(Local::new(path, path.to_owned())));
    };
    let refuse = |why: &str| CacheError::Argument(format!("{}: {why}", path.display()));
    let text = path.to_string_lossy();
    if !text[scheme.len()..].starts_with("://") {
        // What pathlib makes of a URL.
        if matches!(scheme, "s3" | "gs") && text[scheme.len()..].starts_with(":/") {
            return Err(refuse("a URL has two slashes; give it as a str, not as a Path"));
        }
        return Ok(Box::new(Local::new(path, path.to_owned())));
    }
    match scheme {
        // Keys are taken as they are, `%`, `#` and spaces too, as by the stores' own tools.
        "s3" | "gs" => {
            let rest = &text[scheme.len() + 3..];
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            object_at(path, scheme, bucket, key)
        }
        "file" => {
            let local = file_of_url(&text).ok_or_else(|| {
                refuse("not the URL of a file of this machine\nhint: file:///path, with ? and # as %3F and %23")
            })?;
            Ok(Box::new(Local::new(path, local)))
        }
        _ => Err(refuse("expected a path, or a URL of s3://, gs:// or file://")),
    }
}

/// The path that a `file://` URL names; none on another machine, and none that is not absolute.
fn file_of_url(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("file://")?;
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    let usable = path.starts_with('/') && !path.contains(['?', '#']);
    let bytes = usable.then(|| percent_decode_str(path).collect::<Vec<u8>>())?;
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(feature = "object-store")]
fn object_at(path: &Path, scheme: &str, bucket: &str, key: &str) -> CacheResult<Box<dyn Store>> {
    Ok(Box::new(super::objects::Object::at(path, scheme, bucket, key)?))
}

#[cfg(not(feature = "object-store"))]
fn object_at(path: &Path, _: &str, _: &str, _: &str) -> CacheResult<Box<dyn Store>> {
    let why = "object stores are not built in\n\
               hint: enable the feature `object-store` of ebm-cache";
    Err(CacheError::Argument(format!("{}: {why}", path.display())))
}

/// The one name of an output, however it is spelled: absolute, and without `.`, `..`, links or slashes
/// at the end. Folders above a file that is not there yet are made.
///
/// # Errors
/// [`CacheError::Argument`] for a bucket, beside which there is no room for what an output has beside
/// it, and for a name that ends in a slash and is no folder;
/// [`CacheError::Io`].
pub(crate) fn resolve_output(path: &Path) -> CacheResult<PathBuf> {
    let store = store_at(path)?;
    let Some(local) = store.local() else { return store.output_path() };
    let mut target = local.to_owned();
    let wrong = |error| CacheError::io(path, "resolve", error);
    for _ in 0..MOST_LINKS {
        match fs::canonicalize(&target) {
            Ok(whole) => return Ok(whole),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(wrong(error)),
        }
        let (folder, name) = new_file(&target, path)?;
        make_folder(&folder)?;
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
fn new_file(target: &Path, given: &Path) -> CacheResult<(PathBuf, OsString)> {
    let refuse = |why: &str| CacheError::Argument(format!("{}: {why}", given.display()));
    let bytes = target.as_os_str().as_encoded_bytes();
    if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        return Err(refuse("there is no such folder\nhint: make it first, or name a file"));
    }
    let name = target.file_name().ok_or_else(|| refuse("names neither a file nor a folder"))?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    Ok((folder.unwrap_or(Path::new(".")).to_owned(), name.to_owned()))
}
