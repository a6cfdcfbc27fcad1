//! Hooks that CDI devices ask for.

use oci_spec::runtime::{Hook, HookBuilder, Hooks, HooksBuilder};

use super::{BundleInput, Result};
use crate::cdi::spec;

/// None where no device asks for any.
pub(super) fn hooks(input: &BundleInput<'_>) -> Result<Option<Hooks>> {
    let asked = &input.edits.hooks;
    if asked.is_empty() {
        return Ok(None);
    }
    let at = |point: &str| -> Result<Option<Vec<Hook>>> {
        let hooks = asked.iter().filter(|hook| hook.hook_name == point);
        let hooks = hooks.map(hook).collect::<Result<Vec<_>>>()?;
        Ok((!hooks.is_empty()).then_some(hooks))
    };
    let mut hooks = HooksBuilder::default().build()?;
    hooks.set_prestart(at("prestart")?);
    hooks.set_create_runtime(at("createRuntime")?);
    hooks.set_create_container(at("createContainer")?);
    hooks.set_start_container(at("startContainer")?);
    hooks.set_poststart(at("poststart")?);
    hooks.set_poststop(at("poststop")?);
    Ok(Some(hooks))
}

fn hook(asked: &spec::Hook) -> Result<Hook> {
    let mut hook = HookBuilder::default().path(&*asked.path).build()?;
    let list = |words: &Vec<String>| (!words.is_empty()).then(|| words.clone());
    hook.set_args(list(&asked.args));
    hook.set_env(list(&asked.env));
    hook.set_timeout(asked.timeout);
    Ok(hook)
}
