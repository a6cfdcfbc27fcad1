//! What operators write, and what they get to read.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{lock, *};

/// Surroundings of a load: a main file, drop-ins, variables, flags.
struct Site {
    dir: TempDir,
    variables: Vec<(OsString, OsString)>,
    args: CliArgs,
}

fn site() -> Site {
    let dir = tempfile::Builder::new()
        .prefix("crisp-config-")
        .tempdir()
        .unwrap();
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    Site {
        dir,
        variables: Vec::new(),
        args: CliArgs::default(),
    }
}

impl Site {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o644)).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn load(&self) -> Result<Config, ConfigError> {
        let variables = self.variables.clone().into_iter();
        load_from(
            &self.args,
            variables,
            &self.path("crisp.toml"),
            &self.path("conf.d"),
        )
    }

    /// The problems of a load that must fail, without the directory in front.
    fn problems(&self) -> Vec<String> {
        let error = self.load().expect_err("must be refused");
        let prefix = format!("{}/", self.dir.path().display());
        error
            .to_string()
            .lines()
            .map(|l| l.replace(&prefix, ""))
            .collect()
    }
}

/// The problems of a main file.
fn refused(text: &str) -> Vec<String> {
    site().file("crisp.toml", text).problems()
}

#[test]
fn nothing_written_means_the_defaults() {
    assert_eq!(site().load().unwrap(), Config::default());
}

#[test]
fn the_documented_default_file_changes_nothing_and_shows_every_key() {
    assert_eq!(
        site().file("crisp.toml", DEFAULT_TEXT).load().unwrap(),
        Config::default()
    );
    // With every `#key` line in force it is still the defaults: what is documented is true.
    let active: String = DEFAULT_TEXT
        .lines()
        .map(|line| {
            let shown = line
                .strip_prefix('#')
                .filter(|l| l.starts_with(|c: char| c != ' '));
            format!("{}\n", shown.unwrap_or(line))
        })
        .collect();
    assert_eq!(
        site().file("crisp.toml", &active).load().unwrap(),
        Config::default()
    );
    for key in keys::KEYS {
        let (section, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        assert!(
            active.contains(&format!("\n{name} = ")),
            "{} is not documented",
            key.name
        );
        assert!(
            section.is_empty() || active.contains(&format!("[{section}]")),
            "{section}"
        );
    }
}

#[test]
fn every_key_has_a_flag_and_a_variable() {
    let flags: Vec<&str> = CliArgs::default()
        .flags()
        .iter()
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(flags, keys::KEYS.iter().map(|k| k.name).collect::<Vec<_>>());
}

#[test]
fn later_layers_win_key_by_key() {
    let mut site = site()
        .file(
            "crisp.toml",
            "root = \"/a\"\nstate = \"/b\"\nlog_level = \"warn\"\n[stream]\nport = 1\n",
        )
        .file("conf.d/20-late.toml", "[stream]\nport = 3\n")
        .file(
            "conf.d/10-early.toml",
            "log_level = \"error\"\n[stream]\nport = 2\naddress = \"::1\"\n",
        )
        .file("conf.d/.hidden.toml", "nonsense = 1")
        .file("conf.d/readme.txt", "nonsense")
        .variable("CRISP_LOG_LEVEL", "debug")
        .variable("CRISP_NETWORK_PLUGIN_DIRS", "/x:/y")
        .variable("OTHER", "ignored");
    site.args.log_level = Some("trace".to_owned());
    let config = site.load().unwrap();
    assert_eq!(
        (config.root, config.state.clone()),
        ("/a".into(), "/b".into())
    );
    assert_eq!(
        (config.stream.port, config.stream.address.to_string()),
        (3, "::1".to_owned())
    );
    assert_eq!(config.log_level, LogLevel::Trace);
    assert_eq!(
        config.network.plugin_dirs,
        [Path::new("/x"), Path::new("/y")]
    );
    assert_eq!(
        config.listen,
        Path::new("/b/crisp.sock"),
        "the socket follows the state directory"
    );
}

#[test]
fn a_named_file_stands_alone_and_must_exist() {
    let mut site = site()
        .file("crisp.toml", "log_level = \"warn\"")
        .file("conf.d/a.toml", "log_level = \"error\"")
        .file("mine.toml", "log_format = \"json\"");
    site.args.config = Some(site.path("mine.toml"));
    let config = site.load().unwrap();
    assert_eq!(
        (config.log_level, config.log_format),
        (LogLevel::Info, LogFormat::Json)
    );
    site.args.config = Some(site.path("missing.toml"));
    assert_eq!(
        site.problems(),
        ["missing.toml: cannot be opened: No such file or directory (os error 2)"]
    );
}

#[test]
fn unknown_keys_are_refused_with_place_and_nearest_key() {
    for (text, problem) in [
        (
            "\nrot = \"/x\"",
            "crisp.toml:2: unknown key \"rot\"; did you mean root?",
        ),
        (
            "[network]\n\nconf-dir = \"/x\"",
            "crisp.toml:3: unknown key \"network.conf-dir\"; did you mean network.conf_dir?",
        ),
        (
            "conf_dir = \"/x\"",
            "crisp.toml:1: unknown key \"conf_dir\"; did you mean network.conf_dir?",
        ),
        (
            "[metrics]\naddr = 1",
            "crisp.toml:1: unknown key \"metrics\"",
        ),
        (
            "\"stream.port\" = 1",
            "crisp.toml:1: unknown key \"stream.port\"; did you mean stream.port?",
        ),
        (
            "[runtime.handlers.runc]\ntype = \"builtin\"\npaht = \"/x\"",
            "crisp.toml:3: unknown key \"runtime.handlers.runc.paht\"; did you mean \
             runtime.handlers.runc.path?",
        ),
    ] {
        assert_eq!(refused(text)[..1], [problem], "{text}");
    }
}

#[test]
fn bad_values_name_key_file_line_and_what_would_be_right() {
    for (text, problem) in [
        (
            "log_level = \"loud\"",
            "crisp.toml:1: log_level: \"loud\" is not one of error, warn, info, debug, trace",
        ),
        (
            "root = \"var\"",
            "crisp.toml:1: root: \"var\" is not an absolute path without `..`",
        ),
        (
            "root = \"/a/../b\"",
            "crisp.toml:1: root: \"/a/../b\" is not an absolute path without `..`",
        ),
        (
            "root = 5",
            "crisp.toml:1: root: 5 is not an absolute path without `..`",
        ),
        (
            "[stream]\nport = 70000",
            "crisp.toml:2: stream.port: 70000 is not a port number, 0 to 65535",
        ),
        (
            "[stream]\nport = -1",
            "crisp.toml:2: stream.port: -1 is not a port number, 0 to 65535",
        ),
        (
            "[stream]\nport = 1.5",
            "crisp.toml:2: stream.port: a number with a fraction is not a port number, 0 to 65535",
        ),
        (
            "[stream]\naddress = \"here\"",
            "crisp.toml:2: stream.address: \"here\" is not an IP address, such as 127.0.0.1",
        ),
        (
            "[stream]\nidle_timeout = \"4\"",
            "crisp.toml:2: stream.idle_timeout: \"4\" is not a time from 1s to 365d, such as 30s, 15m \
             or 4h",
        ),
        (
            "[stream]\ntls_cert = \"/a.pem\"",
            "crisp.toml:2: stream.tls_cert: is of no use without stream.tls_key",
        ),
        (
            "[stream]\ntls_client_ca = \"/a.pem\"",
            "crisp.toml:2: stream.tls_client_ca: is of no use without stream.tls_cert",
        ),
        (
            "[stream]\ntls_cert = \"/a.pem\"\ntls_key = \"b.pem\"",
            "crisp.toml:3: stream.tls_key: \"b.pem\" is not an absolute path without `..`, or empty",
        ),
        (
            "listen = \"/run/x.sock\"",
            "crisp.toml:1: listen: \"/run/x.sock\" is not unix:// and an absolute path, such as \
             unix:///run/crisp/crisp.sock",
        ),
        (
            "[network]\nplugin_dirs = [\"/a\", \"b\"]",
            "crisp.toml:2: network.plugin_dirs: [\"/a\", \"b\"] is not a list of absolute paths \
             without `..`",
        ),
        (
            "[network]\nplugin_dirs = [1]",
            "crisp.toml:2: network.plugin_dirs: an array of something other than strings is not a \
             list of absolute paths without `..`",
        ),
        (
            "network = 1",
            "crisp.toml:1: network: is a section: write [network]",
        ),
        (
            "[runtime]\ndefault = \"runc\"",
            "crisp.toml:2: runtime.default: there is no handler \"runc\", only crisp",
        ),
        (
            "root = \"/x\"\nstate = \"/x\"",
            "crisp.toml:2: state: must be another directory than root",
        ),
    ] {
        assert_eq!(refused(text), [problem], "{text}");
    }
}

#[test]
fn what_comes_with_a_later_release_is_refused_with_that_reason() {
    for (text, place) in [
        (
            "[network]\nnative = \"auto\"",
            "crisp.toml:2: network.native: ",
        ),
        (
            "[network]\nnative = \"prefer\"",
            "crisp.toml:2: network.native: ",
        ),
        (
            "[network]\ndefault_bridge = true",
            "crisp.toml:2: network.default_bridge: ",
        ),
        (
            "[runtime.handlers.runc]\ntype = \"oci\"\npath = \"/usr/bin/runc\"",
            "crisp.toml:2: runtime.handlers.runc: ",
        ),
    ] {
        let problems = refused(text);
        assert!(problems[0].starts_with(place), "{problems:?}");
        assert!(problems[0].contains("later release"), "{problems:?}");
        assert_eq!(problems.len(), 1);
    }
    site()
        .file(
            "crisp.toml",
            "[network]\nnative = \"never\"\ndefault_bridge = false",
        )
        .load()
        .unwrap();
}

#[test]
fn handlers_are_checked_and_merged_with_the_builtin_one() {
    let config = site()
        .file(
            "crisp.toml",
            "[runtime]\ndefault = \"fast\"\n[runtime.handlers.fast]\ntype = \"builtin\"\n",
        )
        .load()
        .unwrap();
    let both = ["crisp", "fast"].map(|n| (n.to_owned(), HandlerConfig::Builtin));
    assert_eq!(config.runtime.handlers, BTreeMap::from(both));
    assert_eq!(config.runtime.default, "fast");
    for (text, problem) in [
        ("[runtime.handlers.x]", "type is missing"),
        (
            "[runtime.handlers.x]\ntype = \"vm\"",
            "\"vm\" is not one of builtin, oci",
        ),
        (
            "[runtime.handlers.x]\ntype = \"builtin\"\npath = \"/x\"",
            "path is for handlers of type",
        ),
        (
            "[runtime.handlers.\"../x\"]\ntype = \"builtin\"",
            "unknown key",
        ),
        (
            "[runtime.handlers.UP]\ntype = \"builtin\"",
            "is not a name a RuntimeClass can use",
        ),
        ("[runtime.handlers]\nx = 1", "is a section"),
    ] {
        let problems = refused(text);
        assert!(
            problems.iter().any(|p| p.contains(problem)),
            "{text}: {problems:?}"
        );
    }
}

#[test]
fn variables_and_flags_are_checked_like_files() {
    let mut site = site()
        .variable("CRISP_LOG_LEVLE", "debug")
        .variable("CRISP_STREAM_PORT", "many")
        .variable("CRISP_NETWORK_DEFAULT_BRIDGE", "yes");
    site.args.root = Some("relative".to_owned());
    assert_eq!(
        site.problems(),
        [
            "environment variable CRISP_LOG_LEVLE: no setting has this variable; did you mean \
             CRISP_LOG_LEVEL?",
            "environment variable CRISP_STREAM_PORT: stream.port: \"many\" is not a port number, 0 \
             to 65535",
            "environment variable CRISP_NETWORK_DEFAULT_BRIDGE: network.default_bridge: \"yes\" is \
             not true or false",
            "flag --root: root: \"relative\" is not an absolute path without `..`",
        ]
    );
}

#[test]
fn all_problems_come_at_once() {
    let site = site()
        .file(
            "crisp.toml",
            "rot = 1\nlog_level = \"loud\"\n[stream]\nport = \"x\"",
        )
        .file("conf.d/a.toml", "stat = 1");
    assert_eq!(site.problems().len(), 4, "{:?}", site.problems());
}

#[test]
fn a_syntax_error_names_its_line() {
    let problems = refused("root = \"/x\"\n\nlog_level = = 1\n");
    assert!(problems[0].starts_with("crisp.toml:3: "), "{problems:?}");
    let twice = refused("root = \"/x\"\nroot = \"/y\"");
    assert!(twice[0].starts_with("crisp.toml:2: "), "{twice:?}");
}

#[test]
fn hostile_files_are_refused_in_bounded_time_and_memory() {
    let deep = format!("root = {}", "[".repeat(200_000));
    let long = format!("root = \"/{}\"", "x".repeat(10_000));
    let bytes: [(&[u8], &str); 4] = [
        (&vec![b'#'; 2 << 20], "larger than 1024 KiB"),
        (b"root = \"\xff\"", "is not UTF-8 (line 1)"),
        (deep.as_bytes(), "crisp.toml:1"),
        (b"root = \"/a\\u0000b\"", "is not an absolute path"),
    ];
    for (text, problem) in bytes {
        let problems = site().file("crisp.toml", text).problems();
        assert!(problems[0].contains(problem), "{problems:?}");
        assert!(
            problems.iter().all(|p| p.len() < 1000),
            "messages are short"
        );
    }
    // A state directory that is too deep for a socket.
    let problems = site()
        .file("crisp.toml", long.replace("root", "state"))
        .problems();
    assert!(problems[0].contains("107"), "{problems:?}");
}

#[test]
fn files_that_are_no_files_or_everybodys_are_refused() {
    let directory = site();
    fs::create_dir(directory.path("crisp.toml")).unwrap();
    assert_eq!(directory.problems(), ["crisp.toml: is not a regular file"]);

    let fifo = site();
    nix::unistd::mkfifo(&fifo.path("crisp.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(fifo.problems(), ["crisp.toml: is not a regular file"]);

    let open = site().file("crisp.toml", "");
    fs::set_permissions(open.path("crisp.toml"), fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(
        open.problems(),
        ["crisp.toml: can be written by everybody; run chmod o-w on it"]
    );

    let linked = site().file("real", "log_level = \"warn\"");
    std::os::unix::fs::symlink(linked.path("real"), linked.path("crisp.toml")).unwrap();
    assert_eq!(
        linked.load().unwrap().log_level,
        LogLevel::Warn,
        "a link is followed"
    );
    fs::remove_file(linked.path("real")).unwrap();
    assert_eq!(
        linked.load().unwrap(),
        Config::default(),
        "a dangling one is like none"
    );

    let open_dir = site();
    fs::set_permissions(open_dir.path("conf.d"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(open_dir.problems()[0].starts_with("conf.d: can be written by everybody"));
}

#[test]
fn a_second_daemon_on_a_directory_is_refused_with_the_pid_of_the_first() {
    let site = site();
    let root = site.path("root");
    let first = lock::acquire(&root).unwrap();
    let text = lock::acquire(&root).unwrap_err().to_string();
    assert!(
        text.ends_with(&format!("process {}", std::process::id())),
        "{text}"
    );
    drop(first);
    // The pid of a daemon that is gone means nothing.
    fs::write(root.join("lock"), "1\n").unwrap();
    let _again = lock::acquire(&root).unwrap();
    let pid = fs::read_to_string(root.join("lock")).unwrap();
    assert_eq!(pid.trim(), std::process::id().to_string());
}
