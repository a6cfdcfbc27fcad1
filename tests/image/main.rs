//! The image ring: real pulls from a registry that can be told to misbehave, real layers applied by
//! the real confined child, real overlay mounts. Runs as root.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod attack;
mod crash;
mod fault;
mod golden;
mod layer;
mod mount;
mod names;
mod registry;
mod site;
mod tls;

/// Not a test of its own: the applier and the puller of the other tests are this executable again,
/// with this one test selected and a variable set.
#[test]
#[expect(clippy::exit, reason = "a child process of a test ends here")]
fn child_entry() {
    match std::env::var("CRISP_TEST_CHILD").as_deref() {
        Ok("apply") => {
            let code = crisp::snapshot::apply::child_main();
            std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
        }
        Ok("pull") => crash::puller(),
        _ => {}
    }
}
