//! Opening a writer: what an earlier run left is taken up, or refused.

use std::collections::HashMap;
use std::time::Instant;

use super::{CacheWriter, OutputLock, Source, WriterOptions};
use crate::cache::error::{CacheError, CacheResult};
use crate::cache::footer::StateKey;
use crate::cache::identity::{Identity, differences};
use crate::cache::manifest::Manifest;
use crate::cache::parts::{PARQUET, open_source_files, require_same, same_tokens};
use crate::cache::row_check::RowChecker;
use crate::cache::row_file::RowFile;
use crate::cache::storage::{self, Kind};

impl CacheWriter {
    pub(super) fn open(
        lock: OutputLock,
        identity: Identity,
        dim: usize,
        options: WriterOptions,
    ) -> CacheResult<Self> {
        let OutputLock { output, mut folder } = lock;
        folder.remove_temporary()?;
        if let Some(detail) = folder.rejected()? {
            if !options.overwrite {
                return Err(CacheError::Rejected { path: folder.path().to_owned(), detail });
            }
            folder.clear()?;
        }
        let mut writer = Self {
            output,
            folder,
            identity,
            dim,
            options,
            sources: Vec::new(),
            former: 0,
            former_sources: 0,
            version: None,
            total: 0,
            current: HashMap::new(),
            checker: RowChecker::new(dim),
            pending_states: Vec::new(),
            pending_values: Vec::new(),
            last_checkpoint: Instant::now(),
            discarded: Vec::new(),
        };
        writer.take_up()?;
        Ok(writer)
    }

    /// Takes up the former output and the shards of an interrupted run.
    fn take_up(&mut self) -> CacheResult<()> {
        self.version = match storage::kind(&self.output)? {
            Kind::Folder => Manifest::read(&self.output)?.map(|(_, version)| version),
            _ => storage::version(&self.output)?,
        };
        if !self.options.overwrite {
            for file in self.former_files()? {
                self.require(&file)?;
                self.add_source(file)?;
            }
            self.former = self.total;
            self.former_sources = self.sources.len();
        }
        for path in self.folder.shards().to_vec() {
            match RowFile::open_source(&path).and_then(|file| self.add_shard(file)) {
                Err(error @ (CacheError::Format { .. } | CacheError::Row { .. })) => {
                    // Its rows are encoded anew; a shard holds nothing else.
                    self.folder.remove_shard(&path)?;
                    self.discarded.push(error.to_string());
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// What the output consists of so far.
    fn former_files(&self) -> CacheResult<Vec<RowFile>> {
        match storage::kind(&self.output)? {
            Kind::Missing => return Ok(Vec::new()),
            Kind::File => {}
            Kind::Folder => {
                if let Some((manifest, _)) = Manifest::read(&self.output)? {
                    manifest.remove_superseded(&self.output)?;
                } else if storage::list(&self.output, PARQUET)?.is_empty() {
                    return Ok(Vec::new());
                }
            }
        }
        open_source_files(&self.output)
    }

    fn add_shard(&mut self, file: RowFile) -> CacheResult<()> {
        let made_by = file.footer().map(|footer| &footer.identity);
        if self.options.overwrite && !differences(Some(&self.identity), made_by).is_empty() {
            return self.folder.remove_shard(file.path());
        }
        self.require(&file)?;
        self.add_source(file)
    }

    pub(super) fn require(&self, file: &RowFile) -> CacheResult<()> {
        let made_by = file.footer().map(|footer| &footer.identity);
        require_same(file.path(), made_by, Some(&self.identity), "the one at hand")?;
        if file.dim() != self.dim {
            let (found, dim) = (file.dim(), self.dim);
            let detail = format!("rows have {found} values, this encoder's {dim}");
            return Err(CacheError::format(file.path(), detail));
        }
        Ok(())
    }

    /// Checks the rows of a file and makes the good ones part of the output.
    fn add_source(&mut self, file: RowFile) -> CacheResult<()> {
        // Read to the end before anything counts, so that a damaged file leaves no trace.
        file.for_each(|_| Ok(()))?;
        for (left, right) in same_tokens(std::slice::from_ref(&file))?.key_pairs() {
            self.checker.allow_equal(left, right);
        }
        let first = self.total;
        file.for_each(|rows| {
            let keys: Vec<StateKey> = rows.states.iter().flatten().map(StateKey::of).collect();
            for key in &keys {
                if self.current.remove(key).is_some() {
                    self.checker.retract(*key); // the later row of a state counts
                }
            }
            for (key, verdict) in keys.iter().zip(self.checker.check(&keys, &rows.values)) {
                if verdict.is_ok() {
                    self.current.insert(*key, self.total);
                }
                self.total += 1;
            }
            Ok(())
        })?;
        self.sources.push(Source { file, first });
        Ok(())
    }
}
