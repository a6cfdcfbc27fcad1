//! What CNI plugins print and what lies in their directory.
#![no_main]

use std::path::Path;

use crisp::network::conflist::{self, CniVersion};
use crisp::network::result;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let version = CniVersion::parse(version).expect("a known version");
        if let Ok(result) = result::parse(bytes, version) {
            let _ = result.pod_ips("eth0");
        }
    }
    let _ = result::parse_error(bytes);
    let _ = result::parse_versions(bytes);
    let _ = conflist::parse(bytes, Path::new("/etc/cni/net.d/x.conflist"));
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = result::parse_cidr(text);
        let clean = result::clean(text);
        assert!(!clean.contains('\u{1b}'), "nothing reaches a terminal");
    }
});
