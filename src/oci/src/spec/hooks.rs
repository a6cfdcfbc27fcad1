//! Hooks.

use std::path::Path;

use oci_spec::runtime::Hook;

use super::{Result, SpecInput, invalid, text};
use crate::plan::{HookPlan, HooksPlan};

/// Most hooks of one kind; more are a mistake of whoever wrote them.
const MAX_HOOKS: usize = 256;

/// Reads `hooks`. Without any there is no plan for them.
pub(super) fn hooks(input: &SpecInput<'_>, root: &Path) -> Result<Option<HooksPlan>> {
    let Some(hooks) = input.spec.hooks() else {
        return Ok(None);
    };
    let plan = HooksPlan {
        prestart: list("hooks.prestart", hooks.prestart().as_ref())?,
        create_runtime: list("hooks.createRuntime", hooks.create_runtime().as_ref())?,
        create_container: list("hooks.createContainer", hooks.create_container().as_ref())?,
        start_container: list("hooks.startContainer", hooks.start_container().as_ref())?,
        poststart: list("hooks.poststart", hooks.poststart().as_ref())?,
        poststop: list("hooks.poststop", hooks.poststop().as_ref())?,
        ..HooksPlan::default()
    };
    if plan == HooksPlan::default() {
        return Ok(None);
    }
    let annotations = input.spec.annotations().iter().flatten();
    let mut annotations: Vec<(String, String)> = annotations
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    // The map has no order, the same specification shall give the same plan.
    annotations.sort();
    Ok(Some(HooksPlan {
        oci_version: input.spec.version().clone(),
        root_path: text("root.path", &Path::new(input.bundle).join(root))?,
        annotations,
        ..plan
    }))
}

fn list(field: &str, hooks: Option<&Vec<Hook>>) -> Result<Vec<HookPlan>> {
    let hooks = hooks.map(Vec::as_slice).unwrap_or_default();
    if hooks.len() > MAX_HOOKS {
        return Err(invalid(field, format!("more than {MAX_HOOKS}")));
    }
    let numbered = hooks.iter().enumerate();
    numbered
        .map(|(index, hook)| one(&format!("{field}[{index}]"), hook))
        .collect()
}

fn one(field: &str, hook: &Hook) -> Result<HookPlan> {
    let path = text(&format!("{field}.path"), hook.path())?;
    if !path.starts_with('/') {
        let reason = format!("{path:?} is not an absolute path");
        return Err(invalid(format!("{field}.path"), reason));
    }
    let words = |name: &str, list: &Option<Vec<String>>| {
        let list = list.clone().unwrap_or_default();
        match list.iter().find(|word| word.contains('\0')) {
            Some(word) => Err(invalid(
                format!("{field}.{name}"),
                format!("{word:?} contains NUL"),
            )),
            None => Ok(list),
        }
    };
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds) => match u32::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Some(seconds),
            _ => {
                let reason = format!("{seconds} is not a number of seconds above 0");
                return Err(invalid(format!("{field}.timeout"), reason));
            }
        },
    };
    Ok(HookPlan {
        path,
        args: words("args", hook.args())?,
        env: words("env", hook.env())?,
        timeout,
    })
}
