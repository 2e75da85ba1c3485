//! The memory of a cache's rows: one allocation, in huge pages where the system has them.

use std::ops::Deref;
use std::path::Path;

use memmap2::{Mmap, MmapMut};

use crate::format::error::{CacheError, CacheResult};

/// Zeroed float32 values.
///
/// The system hands fresh memory out page by page, each zeroed as it is first touched; with pages of
/// 2 MiB instead of 4 KiB that costs a third.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Option<MmapMut>);

impl Buffer {
    /// Memory for `rows x dim` values, or an error where a file claims more than there is.
    pub(crate) fn zeroed(path: &Path, rows: usize, dim: usize) -> CacheResult<Self> {
        let too_large = || {
            let detail = format!("claims {rows} rows of {dim} values, more than memory can hold");
            CacheError::format(path, detail)
        };
        let bytes = rows
            .checked_mul(dim)
            .and_then(|count| count.checked_mul(size_of::<f32>()))
            .ok_or_else(too_large)?;
        if bytes == 0 {
            return Ok(Self(None)); // there are no maps of nothing
        }
        // A map is only promised memory: what a damaged footer claims must not be believed so far.
        if Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
            return Err(too_large());
        }
        let map = MmapMut::map_anon(bytes).map_err(|_| too_large())?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "no huge pages");
        }
        Ok(Self(Some(map)))
    }

    /// The values for good: from here on a write to them, through a tensor of torch for example, which
    /// heeds no flag of numpy, ends the process instead of changing what others read.
    pub(crate) fn seal(self, path: &Path) -> CacheResult<Sealed> {
        let map = self.0.map(MmapMut::make_read_only).transpose();
        map.map(Sealed).map_err(|error| CacheError::io(path, "protect the rows of", error))
    }

    /// The values, to be written.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        self.0.as_mut().map_or(&mut [], |map| bytemuck::cast_slice_mut(map))
    }
}

/// Float32 values that nobody can write.
#[derive(Debug, Default)]
pub(crate) struct Sealed(Option<Mmap>);

impl Deref for Sealed {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_ref().map_or(&[], |map| bytemuck::cast_slice(map))
    }
}
