//! Brings frozen layers into LMDB, beside the writer.

use std::sync::Arc;

use tokio::sync::watch;

use super::StoreError;
use super::layers::{Layer, SharedLayers};
use super::tables::{Tables, failed};

/// A layer to be applied, and the generation of the journal that it is in.
pub(super) struct Frozen {
    pub(super) layer: Arc<Layer>,
    pub(super) generation: u64,
}

/// What the applier's thread owns.
pub(super) struct Applier {
    pub(super) tables: Tables,
    pub(super) layers: SharedLayers,
    pub(super) fail: watch::Sender<Option<StoreError>>,
}

impl Drop for Applier {
    /// As for the writer.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail.send_replace(Some(StoreError::Failed("what fills LMDB panicked".to_owned())));
        }
    }
}

impl Applier {
    /// Applies layers; says whether the store goes on.
    pub(super) fn apply(&mut self, jobs: &mut Vec<Frozen>) -> bool {
        jobs.drain(..).all(|frozen| match self.apply_one(&frozen) {
            Ok(()) => true,
            Err(StoreError::Full) => {
                tracing::warn!("the storage has no room for what is in its journal: free disk space");
                true
            }
            Err(error) => {
                self.fail.send_replace(Some(error));
                false
            }
        })
    }

    fn apply_one(&self, frozen: &Frozen) -> Result<(), StoreError> {
        match self.apply_at_once(frozen) {
            // Old pages are kept while a transaction writes new ones.
            Err(StoreError::Full) => self.tables.apply_in_parts(&frozen.layer, frozen.generation)?,
            done => done?,
        }
        let mut layers = self.layers.write();
        layers.frozen.take_if(|layer| Arc::ptr_eq(layer, &frozen.layer));
        Ok(())
    }

    fn apply_at_once(&self, frozen: &Frozen) -> Result<(), StoreError> {
        let mut txn = self.tables.env.write_txn().map_err(failed)?;
        if self.tables.applied(&txn)? < frozen.generation {
            self.tables.apply(&mut txn, &frozen.layer).map_err(failed)?;
            self.tables.set_applied(&mut txn, frozen.generation).map_err(failed)?;
            txn.commit().map_err(failed)?;
        }
        Ok(())
    }
}
