//! The model of a seccomp profile, as `linux.seccomp` of the OCI runtime specification has it.

/// A profile: what happens to each system call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// What happens to calls no rule speaks of.
    pub default_action: Action,
    /// Architectures whose calls are judged; empty: the native one. Calls of others kill.
    pub architectures: Vec<Arch>,
    /// `None` stands for the runtimes' default ([`Flag::SpecAllow`]).
    pub flags: Option<Vec<Flag>>,
    /// Rules in the order of the source.
    pub rules: Vec<Rule>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            default_action: Action::Allow,
            architectures: Vec::new(),
            flags: None,
            rules: Vec::new(),
        }
    }
}

/// What to do with some system calls, perhaps only for certain arguments.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Names of system calls; unknown ones are ignored.
    pub names: Vec<String>,
    /// What happens.
    pub action: Action,
    /// All must hold, unless one argument is named more than once: then each stands alone.
    pub args: Vec<Arg>,
}

/// A condition on one argument of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arg {
    /// 0 to 5.
    pub index: u8,
    /// What the argument is compared with; the mask for [`Op::MaskedEq`].
    pub value: u64,
    /// What the masked argument must be; unused by other operators.
    pub value_two: u64,
    /// How it is compared.
    pub op: Op,
}

/// Comparison, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Equal.
    Eq,
    /// Greater or equal.
    Ge,
    /// Greater.
    Gt,
    /// `argument & value == value_two`.
    MaskedEq,
}

/// What happens to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The process is killed.
    KillProcess,
    /// The calling thread is killed.
    KillThread,
    /// SIGSYS.
    Trap,
    /// The call fails with this errno.
    Errno(u16),
    /// A tracer is told this number; without one the call fails with ENOSYS.
    Trace(u16),
    /// Allowed and logged.
    Log,
    /// Allowed.
    Allow,
    /// Handed to another process. Profiles may say it; the compiler refuses it.
    Notify,
}

/// An architecture whose system calls a process on x86-64 can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// 64 bit.
    X86_64,
    /// 32 bit (i386).
    X86,
    /// 32-bit pointers in 64-bit mode.
    X32,
    /// Known to the specification, never seen by a kernel on x86-64.
    Other,
}

/// How a filter is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// All threads at once; means nothing here, the loading process has one.
    Tsync,
    /// Log all actions but allow.
    Log,
    /// No speculative store bypass mitigation on account of the filter.
    SpecAllow,
    /// For notifications, which are refused.
    WaitKillableRecv,
}
