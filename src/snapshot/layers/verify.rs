//! A second look at a layer that is in its place.

use super::{LayerError, Layers, read_info, tally};

impl Layers {
    /// Compares a layer's tree with its record. A damaged one is quarantined, so that the next pull
    /// fetches it again. Returns whether it was whole, or is gone. Blocks for a walk over the tree.
    ///
    /// # Errors
    /// [`LayerError::Storage`] if it cannot be moved aside.
    pub fn verify(&self, key: &str) -> Result<bool, LayerError> {
        let Some(info) = self.info(key) else {
            return Ok(true);
        };
        let whole = read_info(&self.dir(key)).is_ok_and(|found| found == info)
            && tally(&self.tree(key)).is_ok_and(|found| found == (info.entries, info.bytes));
        if !whole {
            let mut state = self.state();
            if state.index.get(key) != Some(&info) {
                // Swept while it was being looked at.
                return Ok(true);
            }
            tracing::error!(layer = key, "damaged layer moved aside");
            self.move_aside(key)?;
            state.index.remove(key);
        }
        Ok(whole)
    }
}
