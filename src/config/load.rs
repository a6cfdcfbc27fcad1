//! Layers to settings to [`Config`].

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::{
    Config, ConfigError, HandlerConfig, LogFormat, LogLevel, NativeNetwork, Origin,
    args::CliArgs,
    keys::HANDLERS,
    layer::{Setting, Settings, drop_ins},
    stream,
    value::{Value, quoted},
};

/// The main configuration file; a missing one is fine.
pub const DEFAULT_FILE: &str = "/etc/crisp/crisp.toml";
/// The directory of drop-in files that override the main one.
pub const DROP_IN_DIR: &str = "/etc/crisp/conf.d";

/// Longest path a Unix socket address can hold, without its final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Loads the configuration of this process: files, its environment, its flags.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn load(args: &CliArgs) -> Result<Config, ConfigError> {
    load_from(
        args,
        std::env::vars_os(),
        Path::new(DEFAULT_FILE),
        Path::new(DROP_IN_DIR),
    )
}

/// Loads and throws away; what `crisp config check` does. Same as [`load`] in all else.
///
/// # Errors
/// As [`load`].
pub fn check(args: &CliArgs) -> Result<(), ConfigError> {
    load(args).map(drop)
}

/// [`load`] with the surroundings given.
///
/// # Errors
/// As [`load`].
pub fn load_from(
    args: &CliArgs,
    environment: impl Iterator<Item = (OsString, OsString)>,
    default_file: &Path,
    drop_in_dir: &Path,
) -> Result<Config, ConfigError> {
    let mut settings = Settings::default();
    match &args.config {
        // A file named by hand is the whole truth: the host's drop-ins belong to the host's daemon.
        Some(named) => settings.add_file(named),
        None => {
            if default_file.try_exists().unwrap_or(true) {
                settings.add_file(default_file);
            }
            match drop_ins(drop_in_dir) {
                Ok(files) => files.iter().for_each(|file| settings.add_file(file)),
                Err(problem) => settings.problems.push(problem),
            }
        }
    }
    settings.add_environment(environment);
    for (name, value) in args.flags() {
        if let Some(text) = value {
            settings.add_flag(name, text);
        }
    }
    build(settings)
}

/// Values of the right kinds to a configuration that makes sense as a whole.
fn build(mut settings: Settings) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    take_plain(&mut config, &mut settings);
    take_listen(&mut config, &mut settings);
    stream::take(&mut config.stream, &mut settings);
    take_handlers(&mut config, &mut settings);
    refuse_unbuilt(&config, &mut settings);
    if config.root == config.state {
        let origin = origin(&settings, "state");
        settings.problem(
            origin,
            "state",
            "must be another directory than root".to_owned(),
        );
    }
    if settings.problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError {
            problems: settings.problems,
        })
    }
}

fn take_plain(config: &mut Config, settings: &mut Settings) {
    let path = |name: &str, to: &mut PathBuf| {
        if let Some(Value::Path(path)) = value(settings, name) {
            *to = path;
        }
    };
    path("root", &mut config.root);
    path("state", &mut config.state);
    path("network.conf_dir", &mut config.network.conf_dir);
    path("image.hosts_dir", &mut config.image.hosts_dir);
    path("runtime.blockio_config", &mut config.runtime.blockio_config);
    let text = |name: &str| match value(settings, name) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    };
    // The words were checked against the table of keys; any other cannot come here.
    config.log_level = match text("log_level").as_deref() {
        Some("error") => LogLevel::Error,
        Some("warn") => LogLevel::Warn,
        Some("debug") => LogLevel::Debug,
        Some("trace") => LogLevel::Trace,
        _ => LogLevel::Info,
    };
    config.log_format = match text("log_format").as_deref() {
        Some("json") => LogFormat::Json,
        _ => LogFormat::Text,
    };
    config.network.native = match text("network.native").as_deref() {
        Some("auto") => NativeNetwork::Auto,
        Some("prefer") => NativeNetwork::Prefer,
        _ => NativeNetwork::Never,
    };
    if let Some(Value::Switch(on)) = value(settings, "network.default_bridge") {
        config.network.default_bridge = on;
    }
    if let Some(Value::Paths(dirs)) = value(settings, "network.plugin_dirs") {
        config.network.plugin_dirs = dirs;
    }
    if let Some(Value::Switch(on)) = value(settings, "runtime.create_mount_sources") {
        config.runtime.create_mount_sources = on;
    }
    if let Some(Value::Paths(dirs)) = value(settings, "runtime.cdi_dirs") {
        config.runtime.cdi_dirs = dirs;
    }
}

/// The socket lies in the state directory unless told otherwise, so that one flag moves both.
fn take_listen(config: &mut Config, settings: &mut Settings) {
    config.listen = config.state.join("crisp.sock");
    let mut key = "state";
    if let Some(Value::Text(text)) = value(settings, "listen") {
        key = "listen";
        let path = text.strip_prefix("unix://").map(Path::new);
        match path.filter(|p| p.is_absolute() && p.file_name().is_some() && !text.contains('\0')) {
            Some(path) => config.listen = path.to_owned(),
            None => {
                let text = format!(
                    "{} is not unix:// and an absolute path, such as unix:///run/crisp/crisp.sock",
                    quoted(&text)
                );
                let origin = origin(settings, key);
                return settings.problem(origin, key, text);
            }
        }
    }
    let length = config.listen.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        let text = format!(
            "the path of the socket has {length} bytes, the kernel takes at most {MAX_SOCKET_PATH}"
        );
        let origin = origin(settings, key);
        settings.problem(origin, key, text);
    }
}

fn take_handlers(config: &mut Config, settings: &mut Settings) {
    for (name, origin) in settings.handlers.clone() {
        let section = format!("{HANDLERS}.{name}");
        if !is_handler_name(&name) {
            let text = format!(
                "{} is not a name a RuntimeClass can use: 1 to 63 lower-case letters, digits and inner hyphens",
                quoted(&name)
            );
            settings.problem(origin, &section, text);
            continue;
        }
        match handler(settings, &section) {
            Ok(handler) => drop(config.runtime.handlers.insert(name, handler)),
            Err((place, text)) => settings.problem(place.unwrap_or(origin), &section, text),
        }
    }
    if let Some(Value::Text(name)) = value(settings, "runtime.default") {
        config.runtime.default = name;
    }
    let default = &config.runtime.default;
    // A handler with a problem of its own is reported once.
    if !config.runtime.handlers.contains_key(default) && !settings.handlers.contains_key(default) {
        let known: Vec<&str> = config.runtime.handlers.keys().map(String::as_str).collect();
        let text = format!(
            "there is no handler {}, only {}",
            quoted(default),
            known.join(", ")
        );
        let origin = origin(settings, "runtime.default");
        settings.problem(origin, "runtime.default", text);
    }
}

/// The one place that says which types of handler this release serves.
fn handler(settings: &Settings, section: &str) -> Result<HandlerConfig, (Option<Origin>, String)> {
    let type_key = format!("{section}.type");
    let path = settings.values.get(&format!("{section}.path"));
    let place = |setting: &Setting| Some(setting.origin.clone());
    match (value(settings, &type_key), path) {
        (Some(Value::Text(kind)), Some(path)) if kind == "builtin" => Err((
            place(path),
            "path is for handlers of type \"oci\"; this one is builtin".to_owned(),
        )),
        (Some(Value::Text(kind)), None) if kind == "builtin" => Ok(HandlerConfig::Builtin),
        (Some(_), _) => Err((
            settings.values.get(&type_key).and_then(place),
            "external OCI runtimes (type \"oci\") come with a later release; today a handler is \
             type = \"builtin\""
                .to_owned(),
        )),
        (None, _) => Err((None, "type is missing: \"builtin\" or \"oci\"".to_owned())),
    }
}

/// Settings that have a meaning but no implementation yet.
fn refuse_unbuilt(config: &Config, settings: &mut Settings) {
    if config.network.native != NativeNetwork::Never {
        let origin = origin(settings, "network.native");
        let text = "the native network comes with a later release; today this is \"never\": CNI \
                    plugins are executed";
        settings.problem(origin, "network.native", text.to_owned());
    }
    if config.network.default_bridge {
        let origin = origin(settings, "network.default_bridge");
        let text = "the embedded bridge network comes with a later release; today this is false: \
                    put a configuration list into network.conf_dir";
        settings.problem(origin, "network.default_bridge", text.to_owned());
    }
}

fn is_handler_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

pub(super) fn value(settings: &Settings, name: &str) -> Option<Value> {
    settings.values.get(name).map(|s| s.value.clone())
}

pub(super) fn origin(settings: &Settings, name: &str) -> Origin {
    settings
        .values
        .get(name)
        .map_or(Origin::Default, |s| s.origin.clone())
}
