//! `crisp import`: images from an OCI archive, without a registry and without a daemon.

use std::path::PathBuf;

use crate::{
    config::lock::{self, LockError},
    daemon::{self, DaemonError},
    image::PullError,
    store::{Store, StoreError},
};

/// What to import and where to.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// The daemon's root directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/crisp")]
    root: PathBuf,
    /// Name for an image that brings none of its own
    #[arg(long, value_name = "REFERENCE")]
    name: Option<String>,
    /// A tar archive of an OCI image layout
    archive: PathBuf,
}

/// Why an archive was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A daemon serves the root directory.
    #[error("stop the daemon first")]
    Lock(#[from] LockError),
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    /// Images cannot be opened.
    #[error("cannot open the images")]
    Images(#[from] DaemonError),
    /// The archive is none, or its content is refused.
    #[error("cannot import {}", path.display())]
    Import {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: PullError,
    },
    /// No runtime for it.
    #[error("cannot start")]
    Start(#[from] std::io::Error),
}

#[expect(
    clippy::print_stdout,
    reason = "the answer of a command goes to standard output"
)]
pub(super) fn run(args: ImportArgs) -> Result<(), ImportError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let _lock = lock::acquire(&args.root)?;
        let (store, report) = Store::open(args.root.join("store"))?;
        let images = daemon::open_images(&args.root, None, &store, report.must_rebuild())?;
        if report.must_rebuild() {
            tokio::task::block_in_place(|| store.rebuild_finished())?;
        }
        let imported = images.import(&args.archive, args.name.as_deref()).await;
        let imported = imported.map_err(|source| ImportError::Import {
            path: args.archive.clone(),
            source,
        })?;
        for image in imported {
            println!("{} {}", image.id, image.tags.join(" "));
        }
        Ok(())
    })
}
