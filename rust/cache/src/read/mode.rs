//! Whether a cache fits the memory.

use std::fs;
use std::path::Path;

use crate::folder::parts::open_files;
use crate::format::error::CacheResult;
use crate::format::options::OpenMode;

impl OpenMode {
    /// What `Auto` means for a cache, from its metadata and the memory that is free now.
    ///
    /// # Errors
    /// Any [`CacheError`] that says why the path is not a cache.
    pub fn resolve(self, path: impl AsRef<Path>) -> CacheResult<Self> {
        self.resolve_within(path, free_memory())
    }

    /// The same, with so many bytes free; `None` if that cannot be told.
    ///
    /// # Errors
    /// As for [`OpenMode::resolve`].
    pub fn resolve_within(self, path: impl AsRef<Path>, free: Option<u64>) -> CacheResult<Self> {
        if self != Self::Auto {
            return Ok(self);
        }
        let files = open_files(path.as_ref())?;
        let sizes = files.iter().map(|file| file.num_rows().saturating_mul(file.dim()));
        let bytes = sizes.fold(0_usize, usize::saturating_add).saturating_mul(size_of::<f32>());
        let fits = free.is_none_or(|free| bytes as u64 <= free / 2);
        // Objects cannot be mapped, and pages that other software wrote may not be readable by address.
        let mappable = || files.iter().all(|file| file.is_ours() && !file.is_object());
        Ok(if fits || !mappable() { Self::InMemory } else { Self::Mapped })
    }
}

/// Bytes that this process may still use, where the system tells: of the machine, and of its control group.
fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let free = kibibytes.checked_mul(1024)?;
    Some(free_in_group().map_or(free, |group| group.min(free)))
}

/// Bytes that the control group of a container has left, by version 2 of control groups or by version 1.
fn free_in_group() -> Option<u64> {
    let number = |file: &str| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let left = |limit: &str, used: &str| Some(number(limit)?.saturating_sub(number(used)?));
    // A limit of `max` is no number: there is none.
    left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current").or_else(|| {
        let folder = "/sys/fs/cgroup/memory/memory";
        left(&format!("{folder}.limit_in_bytes"), &format!("{folder}.usage_in_bytes"))
    })
}
