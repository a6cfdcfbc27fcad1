//! The devices of a container: those of the host that it names, and those that CDI specs describe.

use super::{create::CreateError, spec::ContainerSpec};
use crate::{
    bundle::{self, HostDevice, ResolvedUser},
    cdi::{Cdi, Edits, Owner},
};

/// Device nodes, and what CDI changes beside them. `user` grows by the groups that the devices need.
/// Blocks.
///
/// # Errors
/// The first device that is not there.
pub fn resolve(
    cdi: &Cdi,
    spec: &ContainerSpec,
    user: &mut ResolvedUser,
) -> Result<(Vec<HostDevice>, Edits), CreateError> {
    let mut devices = bundle::devices::resolve(&spec.devices)?;
    let owner = Owner {
        uid: user.uid,
        gid: user.gid,
    };
    let edits = cdi.edits(&spec.cdi_devices, owner)?;
    // Whoever describes a device knows best what lies at its place.
    for device in &edits.devices {
        devices.retain(|known| known.path != device.path);
        devices.push(device.clone());
    }
    user.additional_gids.extend(&edits.additional_gids);
    user.additional_gids.sort_unstable();
    user.additional_gids.dedup();
    Ok((devices, edits))
}
